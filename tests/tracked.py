"""Reads what trackers wrote: wandb's offline files, and TensorBoard's event files."""

import json
import time
from pathlib import Path

BLOCK, HEADER = 32_768, 7


def wandb_records(file: Path):
    """Every record of an offline file of wandb: a log in LevelDB's form, of protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    data, position, parts = file.read_bytes(), HEADER, b""  # the file begins with a head of its own
    while position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        size = int.from_bytes(data[position + 4 : position + 6], "little")
        if position + HEADER + size > len(data):  # not written to its end yet
            return
        kind = data[position + 6]  # 1 whole, 2 first, 3 middle, 4 last part of a record
        parts += data[position + HEADER : position + HEADER + size]
        position += HEADER + size
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


class OfflineRun:
    """One stage in wandb's offline files: its names, and its rows in order."""

    def __init__(self, file: Path) -> None:
        self.media = file.parent / "files"
        self.history = []
        for record in wandb_records(file):
            if record.HasField("run"):
                self.id, self.group, self.stage = record.run.run_id, record.run.run_group, record.run.job_type
                self.project = record.run.project
            if record.HasField("history"):
                self.history.append(_row(record.history.item))

    def curve(self, name: str):
        return [(row["train/global_step"], row[name]) for row in self.history if name in row]

    def tables(self, name: str):
        """Columns and rows of each table of a name."""
        paths = [row[name]["path"] for row in self.history if name in row]
        return [json.loads((self.media / path).read_text()) for path in paths]


def _row(items):
    row = {}
    for item in items:
        *outer, last = item.nested_key or [item.key]
        values = row
        for name in outer:
            values = values.setdefault(name, {})
        values[last] = json.loads(item.value_json)
    return row


def offline_runs(folder: Path, patience_s: float = 60.0):
    """Every run below a folder, in order; on a busy machine wandb writes the end of a file after `finish` returned."""
    files = sorted(folder.rglob("*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    deadline = time.monotonic() + patience_s
    while any(not any(record.HasField("exit") for record in wandb_records(file)) for file in files):
        assert time.monotonic() < deadline, f"wandb did not write the end of {files}"
        time.sleep(0.1)
    return [OfflineRun(file) for file in files]


def events(folder: Path):
    """What TensorBoard would show of a directory."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sizes = {"scalars": 0, "tensors": 0, "audio": 0}  # 0: all
    return EventAccumulator(str(folder), size_guidance=sizes).Reload()


def shown_text(log, name: str):
    """Steps and texts of a name."""
    return {event.step: event.tensor_proto.string_val[0].decode() for event in log.Tensors(f"{name}/text_summary")}
