"""The pages: every Python block runs, in order, as it stands; every public name is in the reference."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, TEACHER

import distilwhisper

PAGES = sorted([*(REPOSITORY / "docs").rglob("*.md")])
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
WITH_CODE = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]


RUNTIMES = {"export.md": ("pywhispercpp", "gguf", "onnx", "onnxruntime")}
"""What the Python of a page takes beyond the extra dev."""


def python_of(page):
    blocks = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return "\n".join(re.sub(f"^{match[1]}", "", match[2], flags=re.MULTILINE) for match in blocks)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.relative_to(REPOSITORY / "docs").as_posix())
def test_python_of_a_page_runs(page, tmp_path):
    if not (TEACHER / "model.safetensors").exists():
        pytest.skip("the trained teacher is not here")
    for package in RUNTIMES.get(page.name, ()):
        pytest.importorskip(package, reason="pip install 'distilwhisper[export]'")
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    code = python_of(page)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr[-3_000:]


def test_reference_holds_every_public_name():
    text = (REPOSITORY / "docs" / "reference" / "index.md").read_text(encoding="utf-8")
    missing = [
        name for name in distilwhisper.__all__ if not re.search(rf"^::: distilwhisper\.\w+.*\.{name}$", text, re.M)
    ]
    assert missing == []


def templates():
    """Every text of the package, adjacent literals joined, with ... where something is filled in."""
    for file in (REPOSITORY / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values)


def test_messages_of_the_troubleshooting_page_are_those_of_the_package():
    page = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    ours = page.split("## From other packages")[0]
    messages = [message.replace("\n", " ") for message in re.findall(r"\*\*`([^`]+)`\*\*", ours)]
    assert len(messages) > 30
    known = list(templates())
    for message in messages:
        pattern = ".*".join(re.escape(part.strip()) for part in message.split("...") if part.strip(" :;,()"))
        assert any(re.search(pattern, text, re.DOTALL) for text in known), message


def test_relative_links_of_readme_lead_somewhere():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [link for link in links if not (REPOSITORY / Path(link)).exists()] == []
