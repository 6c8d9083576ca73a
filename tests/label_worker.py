"""A process that labels: python label_worker.py SETTINGS, a JSON object; the tests start and kill it."""

import json
import sys
import threading
import time
from pathlib import Path

from datasets import Dataset, load_from_disk

from distilwhisper import load_speech
from distilwhisper.label_store import Columns, LabelStore


def words_of(row: int) -> dict:
    """A label that follows from the number of a row."""
    tokens = list(range(row % 7 + 1))
    return {
        "whisper_transcript": f"row {row}", "whisper_tokens": tokens, "whisper_language": "en",
        "whisper_task": "transcribe", "whisper_timestamps": False, "whisper_avg_logprob": -row / 3,
        "whisper_no_speech_prob": None, "whisper_compression_ratio": 1.0, "whisper_capped": False,
        "duration_s": row / 7,
    }  # fmt: skip


def open_store(directory, data, *, shard_rows=10, lease_s=60.0, speaker=(), **settings) -> LabelStore:
    columns = Columns("audio", "text", None, speaker)
    return LabelStore(
        Path(directory), data, columns, settings, text_tokens=list, shard_rows=shard_rows, lease_s=lease_s
    )  # fmt: skip


def label_by_number(store: LabelStore, pause_s: float = 0.0) -> Dataset:
    """Label without a model, a few rows at a time."""

    def label_rows(rows, done):
        for start in range(0, len(rows), 3):
            time.sleep(pause_s)
            batch = range(start, min(start + 3, len(rows)))
            yield [(place, words_of(rows["id"][place])) for place in batch if place not in done]

    store.label(label_rows, lambda rows, seconds: None)
    store.write()
    return load_from_disk(str(store.directory))


def read(settings: dict):
    """The data set that the settings name."""
    if "parquet" in settings:  # a stream
        return load_speech(settings["parquet"], streaming=True)
    return load_from_disk(settings["data"])


def peak_memory_kb(peak: list[int]) -> None:
    """Keep the largest size of the memory that is no file."""
    while True:
        lines = Path("/proc/self/status").read_text().splitlines()
        peak[0] = max(peak[0], next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")))
        time.sleep(0.05)


def main() -> None:
    settings, peak = json.loads(sys.argv[1]), [0]
    threading.Thread(target=peak_memory_kb, args=(peak,), daemon=True).start()
    output, options = settings["output"], settings.get("options", {})
    if "model" in settings:
        from distilwhisper import PseudoLabeler

        labeler = PseudoLabeler(settings["model"], language="en", batch_size=8, max_new_tokens=settings["tokens"])
        labeler.label(read(settings), output, **options)
    else:
        label_by_number(open_store(output, read(settings), **options), settings["pause_s"])
    sys.stdout.write(f"{peak[0]}\n")


if __name__ == "__main__":
    main()
