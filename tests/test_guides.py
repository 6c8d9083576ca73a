"""Every block of Python in a guide runs, in order, in one namespace, from the repository's root."""

import re

import pytest
from conftest import REPOSITORY

GUIDES = sorted((REPOSITORY / "docs" / "guides").glob("*.md"))


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_the_code_of_a_guide_runs(guide, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    namespace = {"__name__": "guide"}
    for block in re.findall(r"^```python\n(.*?)^```", guide.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(guide), "exec"), namespace)
