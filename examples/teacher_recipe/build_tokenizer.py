"""Build the teacher's processor: the real multilingual Whisper vocabulary, without a download of any model.

The 51,865 tokens and the table of the English normaliser are read from the source archive of the PyPI package
`openai-whisper`; the ids are those of the published checkpoints for 99 languages.

    python examples/teacher_recipe/build_tokenizer.py examples/teacher [--archive openai_whisper-20250625.tar.gz]
"""

from __future__ import annotations

import argparse
import base64
import json
import subprocess
import sys
import tarfile
import tempfile
from itertools import pairwise
from pathlib import Path

from transformers import AddedToken, GenerationConfig, WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.whisper.tokenization_whisper import LANGUAGES

PACKAGE = "openai-whisper==20250625"
LANGUAGE_COUNT = 99
CHUNK_S = 5
END_OF_TEXT = "<|endoftext|>"


def download(folder: Path) -> Path:
    """Fetch the source archive with pip; nothing of it is built or run."""
    command = [sys.executable, "-m", "pip", "download", PACKAGE, "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*command, "--no-build-isolation", "--dest", str(folder)], check=True)
    return next(folder.glob("openai_whisper-*.tar.gz"))


def read_archive(archive: Path, name: str) -> bytes:
    with tarfile.open(archive) as tar:
        member = next(member for member in tar if member.name.endswith(name))
        file = tar.extractfile(member)
        assert file is not None, f"{name} in {archive} is not a file"
        return file.read()


def split(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """Return the two tokens that were merged to this one: what BPE leaves when only lower ranks are known."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        best = min(range(len(pairs)), key=pairs.__getitem__)
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]


def special_tokens() -> list[str]:
    return [
        "<|startoftranscript|>",
        *(f"<|{code}|>" for code in list(LANGUAGES)[:LANGUAGE_COUNT]),
        *(f"<|{name}|>" for name in ("translate", "transcribe", "startoflm", "startofprev", "nocaptions")),
        "<|notimestamps|>",
    ]


def build_tokenizer(assets: bytes, normalizer_file: Path) -> WhisperTokenizer:
    """Turn tiktoken ranks into the vocabulary and the merges of byte-level BPE."""
    lines = (line.split() for line in assets.splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    letters = bytes_to_unicode()

    def written(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    vocabulary = {written(token): rank for token, rank in ranks.items()}
    merges = [split(token, ranks) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1]
    tokenizer = WhisperTokenizer(
        vocab={**vocabulary, END_OF_TEXT: len(vocabulary)},
        merges=[(written(left), written(right)) for left, right in merges],
        normalizer_file=str(normalizer_file),
        pad_token=END_OF_TEXT,
        model_max_length=448,
    )
    # decode counts its timestamps from the last of all_special_ids, which add_tokens alone does not extend.
    tokenizer.add_special_tokens({"additional_special_tokens": special_tokens()})
    tokenizer.add_tokens([AddedToken(f"<|{step / 50:.2f}|>", normalized=False) for step in range(1501)])
    return tokenizer


def generation_config(tokenizer: WhisperTokenizer) -> GenerationConfig:
    id_of = tokenizer.convert_tokens_to_ids
    end = id_of(END_OF_TEXT)
    return GenerationConfig(
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=id_of("<|startoftranscript|>"),
        prev_sot_token_id=id_of("<|startofprev|>"),
        no_timestamps_token_id=id_of("<|notimestamps|>"),
        max_initial_timestamp_index=50,
        max_length=448,
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": id_of(f"<|{code}|>") for code in list(LANGUAGES)[:LANGUAGE_COUNT]},
        task_to_id={task: id_of(f"<|{task}|>") for task in ("transcribe", "translate")},
        suppress_tokens=[],
        begin_suppress_tokens=[*tokenizer.encode(" ", add_special_tokens=False), end],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="directory of the processor")
    parser.add_argument("--archive", type=Path, help=f"source archive of {PACKAGE}; by default pip fetches it")
    arguments = parser.parse_args()
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        archive = arguments.archive or download(Path(folder))
        assets = read_archive(archive, "/whisper/assets/multilingual.tiktoken")
        spelling = json.loads(read_archive(archive, "/whisper/normalizers/english.json"))
    normalizer_file = output / "normalizer.json"  # save_pretrained does not write it
    normalizer_file.write_text(json.dumps(spelling, indent=0) + "\n", encoding="utf-8")
    tokenizer = build_tokenizer(assets, normalizer_file)
    extractor = WhisperFeatureExtractor(feature_size=80, sampling_rate=16_000, chunk_length=CHUNK_S)
    WhisperProcessor(extractor, tokenizer).save_pretrained(output)
    extractor.save_pretrained(output)  # preprocessor_config.json, which faster-whisper and Transformers.js read
    generation_config(tokenizer).save_pretrained(output)


if __name__ == "__main__":
    main()
