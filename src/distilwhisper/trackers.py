"""Where numbers, tables and sound of a stage go: Weights & Biases, TensorBoard, or nowhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from distilwhisper.metrics import ErrorCounts
from distilwhisper.run_ids import StageRun
from distilwhisper.tables import markdown_table

TRACKERS = ("wandb", "tensorboard")
STEP = "train/global_step"
"""What wandb draws the curves of a training over."""

PREDICTION_COLUMNS = (
    *("id", "reference", "teacher", "prediction", "WER (%)"),
    *("substitutions", "deletions", "insertions"),
)
TABLE_ROWS = 200
"""Rows of a stage's table, unless told otherwise: trackers are no place for a whole data set."""


class Tracker(Protocol):
    """What all trackers take."""

    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Add numbers by name."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int | None = None) -> None:
        """Add a table."""

    def audio(self, name: str, clips: Mapping[str, Any], sampling_rate: int, step: int | None = None) -> None:
        """Add recordings by caption."""

    def close(self) -> None:
        """Write what is left."""


class WandbTracker:
    """Sends a stage to Weights & Biases, or to its offline files (``WANDB_MODE=offline``).

    The stages of a run are a group there; a stage that goes on continues its curves. A run that is open already is the
    user's: it is taken as it is. ``WANDB_PROJECT`` names the project.

    Args:
        run: Names of run and stage.
        name: What the page shows; default: the stage's id.
    """

    def __init__(self, run: StageRun, name: str | None = None) -> None:
        import wandb

        self._wandb = wandb
        self._ours = wandb.run is None
        self._run = wandb.run or wandb.init(
            project=os.environ.get("WANDB_PROJECT", "distilwhisper"),
            id=run.id,
            name=name or run.id,
            group=run.run_id,
            job_type=run.stage,
            config={"run_id": run.run_id},
            resume="allow",
        )

    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Add numbers by name."""
        self._log(dict(values), step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int | None = None) -> None:
        """Add a table."""
        self._log({name: self._wandb.Table(columns=list(columns), data=[list(row) for row in rows])}, step)

    def audio(self, name: str, clips: Mapping[str, Any], sampling_rate: int, step: int | None = None) -> None:
        """Add recordings by caption."""
        sounds = [self._wandb.Audio(clip, sample_rate=sampling_rate, caption=text) for text, clip in clips.items()]
        self._log({name: sounds}, step)

    def close(self) -> None:
        """End the run, if it was begun here."""
        if self._ours:
            self._run.finish()

    def _log(self, values: dict[str, Any], step: int | None) -> None:
        self._run.log(values if step is None else {**values, STEP: step})


class TensorBoardTracker:
    """Writes a stage to TensorBoard's event files; tables are Markdown there.

    Args:
        writer: Returns the ``SummaryWriter``.
    """

    def __init__(self, writer: Callable[[], Any]) -> None:
        self._writer = writer

    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Add numbers by name."""
        for name, value in values.items():
            self._writer().add_scalar(name, value, step or 0)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int | None = None) -> None:
        """Add a table."""
        text = markdown_table([list(columns), *([_shown(value) for value in row] for row in rows)])
        self._writer().add_text(name, text, step or 0)

    def audio(self, name: str, clips: Mapping[str, Any], sampling_rate: int, step: int | None = None) -> None:
        """Add recordings by caption."""
        for caption, clip in clips.items():
            self._writer().add_audio(f"{name}/{caption}", clip[None], step or 0, sample_rate=sampling_rate)

    def close(self) -> None:
        """Write what is left."""
        self._writer().close()


def open_trackers(report_to: str | Iterable[str], output_dir: str | Path, run: StageRun) -> list[Tracker]:
    """Return the trackers of a stage.

    Args:
        report_to: ``wandb``, ``tensorboard``, several, ``all`` or ``none``.
        output_dir: Directory of the stage: event files are written to ``runs/<id>`` there, or to a folder of that name
            in ``TENSORBOARD_LOGGING_DIR``.
        run: Names of run and stage.

    Raises:
        ValueError: For another tracker.
        ImportError: If its package is missing.
    """
    trackers: list[Tracker] = []
    for name in tracker_names(report_to):
        if name == "wandb":
            trackers.append(WandbTracker(run))
        else:
            from torch.utils.tensorboard import SummaryWriter  # here: it brings torch

            kept_in = os.environ.get("TENSORBOARD_LOGGING_DIR") or Path(output_dir) / "runs"
            writer = SummaryWriter(str(Path(kept_in).expanduser() / run.id))
            trackers.append(TensorBoardTracker(lambda writer=writer: writer))  # type: ignore[misc]
    return trackers


def tracker_names(report_to: str | Iterable[str]) -> list[str]:
    """Return the names of trackers.

    Raises:
        ValueError: For one that is none.
    """
    names = [report_to] if isinstance(report_to, str) else list(report_to)
    if "all" in names:
        return list(TRACKERS)
    for name in names:
        if name not in (*TRACKERS, "none"):
            raise ValueError(f"report_to must be {', '.join(TRACKERS)}, all or none, not {name!r}")
    return [name for name in names if name != "none"]


def prediction_row(
    name: object, reference: str, teacher: str | None, prediction: str, counts: ErrorCounts
) -> tuple[Any, ...]:
    """Return a row under `PREDICTION_COLUMNS`; the error rate of a reference without words is None."""
    rate = round(100 * counts.wer, 1) if counts.reference_words else None
    errors = (counts.substitutions, counts.deletions, counts.insertions)
    return (str(name), reference, teacher, prediction, rate, *errors)


def _shown(value: object) -> str:
    return "" if value is None else str(value)
