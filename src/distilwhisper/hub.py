"""A student on the Hugging Face Hub: model, card and exports in one commit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi

MODEL_FILES = (
    *("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"),
    *(
        "preprocessor_config.json",
        "processor_config.json",
        "normalizer.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
)
"""What is uploaded of a model's directory: no checkpoint, no optimiser state, no log."""

_JAVASCRIPT = "transformers.js_config"


def push_to_hub(
    model_dir: str | Path,
    repo_id: str,
    card: str,
    *,
    exports: Mapping[str, str | Path] | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload a distilled Whisper",
) -> str:
    """Upload a saved student with its card and its exports, all or nothing, and return the address of the commit.

    The model lies at the top of the repository, as Transformers expects it, each export in a directory named like its
    format. Only the ``onnx`` directory of an ONNX export is uploaded: Transformers.js reads the model's own configs.

    Args:
        model_dir: The student, with its processor.
        repo_id: ``user/name``; made if it does not exist.
        card: The model card, as `render_model_card` returns it.
        exports: Directory of each export by format.
        private: Whether a repository that is made is private; default the account's setting.
        token: Access token; default that of ``hf auth login``.
        revision: Branch; default ``main``.
        commit_message: Message of the commit.

    Raises:
        FileNotFoundError: If ``model_dir`` holds no model or no processor, or an export is missing.
        HfHubHTTPError: If the Hub refuses.
    """
    files = hub_files(model_dir, exports or {})
    files["README.md"] = card.encode()
    operations = [CommitOperationAdd(place, content) for place, content in files.items()]
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    commit = api.create_commit(repo_id, operations, commit_message=commit_message, revision=revision)
    return str(commit.commit_url)


def hub_files(model_dir: str | Path, exports: Mapping[str, str | Path]) -> dict[str, Path | bytes]:
    """Return what is uploaded, card apart: the place in the repository to a file or its content.

    Raises:
        FileNotFoundError: If ``model_dir`` holds no model or no processor, or an export is missing.
    """
    directory = Path(model_dir)
    files: dict[str, Path | bytes] = {
        path.name: path for pattern in MODEL_FILES for path in sorted(directory.glob(pattern))
    }
    for needed, kind in (("config.json", "model"), ("model*.safetensors", "model"), ("tokenizer.json", "processor")):
        if not any(directory.glob(needed)):
            raise FileNotFoundError(f"{directory} holds no {kind}: {needed} is missing; save it there first")
    for format, export_dir in exports.items():
        found = dict(_export_files(format, Path(export_dir)))
        if not found:
            raise FileNotFoundError(f"{export_dir} holds no export of the format {format}")
        files |= found
    if "onnx" in exports:
        # How the weights of a large model are split, only the export's config knows.
        settings = json.loads(Path(exports["onnx"], "config.json").read_text(encoding="utf-8")).get(_JAVASCRIPT)
        if settings:
            config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
            files["config.json"] = json.dumps({**config, _JAVASCRIPT: settings}, indent=2).encode()
    return files


def _export_files(format: str, directory: Path) -> Iterator[tuple[str, Path]]:
    root = directory / "onnx" if format == "onnx" else directory
    for path in sorted(root.rglob("*")):
        if path.is_file():
            yield f"{format}/{path.relative_to(root).as_posix()}", path
