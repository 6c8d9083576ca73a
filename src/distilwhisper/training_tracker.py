"""What a training sends to its trackers beside the numbers: predictions, sound, and the name of the run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback

from distilwhisper.audio import load_audio
from distilwhisper.run_ids import begin_stage
from distilwhisper.samples import MapSamples
from distilwhisper.scoring import WordErrorScorer
from distilwhisper.trackers import (
    PREDICTION_COLUMNS,
    TRACKERS,
    TensorBoardTracker,
    Tracker,
    WandbTracker,
    prediction_row,
)

logger = logging.getLogger(__name__)

Prediction = tuple[str, str, list[int]]
"""Reference, transcript, error counts."""


class TrainingTracker(TrainerCallback):
    """Opens the trackers of a training under the name of its run, before Transformers' own callbacks would.

    A training that is resumed goes on with its curves; one that begins gets new ones, in the run of the labels that
    it learns from.

    Args:
        trainer: The trainer, ready but for this callback.
        scorer: Makes texts of ids.
    """

    def __init__(self, trainer: Any, scorer: WordErrorScorer) -> None:
        self._trainer, self._scorer = trainer, scorer
        self._trackers: list[Tracker] | None = None
        self._noted: dict[int, Prediction] = {}
        self._heard: set[str] = set()
        self._tracked = any(name in trainer.args.report_to for name in TRACKERS)
        self._rows = trainer.args.log_predictions if self._tracked else 0

    # ---- the names of the run ----------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Open the trackers; a training that begins at its first update is a new one."""
        self._open(state, goes_on=state.global_step > 0)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Open the trackers for an evaluation without a training."""
        if self._tracked:
            self._open(state, goes_on=True)

    def _open(self, state: Any, *, goes_on: bool) -> None:
        if self._trackers is not None or not state.is_world_process_zero or state.is_hyper_param_search:
            return
        self._trackers = []
        args = self._trainer.args
        data = self._trainer.train_dataset
        run = begin_stage(args.output_dir, "train", [getattr(data, "dataset", data)], goes_on=goes_on)
        if "wandb" in args.report_to:
            self._trackers.append(WandbTracker(run, args.run_name))
        if "tensorboard" in args.report_to:
            self._trackers.append(TensorBoardTracker(_Writer(self._trainer, run.id, state.global_step)))

    # ---- predictions -------------------------------------------------------------------------------------------------

    def note(
        self, rows: Tensor | None, generated: Sequence[Sequence[int]], references: Tensor, counts: list[list[int]]
    ) -> None:
        """Keep the predictions of the first rows of a set: the same utterances at each evaluation.

        Args:
            rows: Positions of the utterances in their set; None if the collator does not tell.
            generated: Ids that the student wrote.
            references: Ids of the references.
            counts: What the scorer counted.
        """
        for position, row in enumerate(rows.tolist() if self._rows and rows is not None else ()):
            if row < self._rows:
                texts = (self._scorer.text(references[position].tolist()), self._scorer.text(generated[position]))
                self._noted[row] = (*texts, counts[position])

    def log_predictions(self, dataloader: Any, prefix: str) -> None:
        """Send what was noted during an evaluation; all processes must call this.

        Args:
            dataloader: The loader of the set.
            prefix: What the metrics of the set begin with: ``eval``, or ``eval_<name>``.
        """
        if not self._rows:
            return
        noted, self._noted = self._noted, {}
        if self._trainer.args.world_size > 1:
            noted = {row: prediction for part in gather_object([noted]) for row, prediction in part.items()}
        if not noted or not self._trainer.is_world_process_zero():
            return
        name = prefix.removeprefix("eval").removeprefix("_")
        samples = getattr(dataloader, "dataset", None)
        rows = {row: samples.dataset[row] if isinstance(samples, MapSamples) else {} for row in sorted(noted)}
        table = [self._table_row(row, columns, *noted[row]) for row, columns in rows.items()]
        step = self._trainer.state.global_step
        for tracker in self._trackers or ():
            tracker.table("predictions" + (f"/{name}" if name else ""), PREDICTION_COLUMNS, table, step)
        if name not in self._heard:
            self._heard.add(name)
            self._log_audio("audio" + (f"/{name}" if name else ""), list(rows.items()), step)

    def _table_row(self, row: int, columns: Any, reference: str, text: str, counts: list[int]) -> tuple[Any, ...]:
        teacher = columns.get(self._trainer.args.transcript_column)
        name = columns.get("id")
        return prediction_row(row if name is None else name, reference, teacher, text, self._scorer.words(counts))

    def _log_audio(self, name: str, rows: list[tuple[int, Any]], step: int) -> None:
        """Send the first recordings, once in a process: they do not change."""
        column = self._trainer.args.audio_column
        heard = [(row, columns) for row, columns in rows[: self._trainer.args.log_audio] if column in columns]
        clips = {str(columns.get("id", row)): load_audio(columns[column], 16_000) for row, columns in heard}
        for tracker in self._trackers if clips and self._trackers else ():
            tracker.audio(name, clips, 16_000, step)


class _Writer:
    """The event file that Transformers' callback writes, so that there is one of a run at a time.

    TensorBoard reads the files of a directory one after the other, and so joins those of a training that was resumed;
    what the earlier one wrote after the checkpoint is purged.
    """

    def __init__(self, trainer: Any, name: str, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations import TensorBoardCallback

        self._callback = next(
            callback for callback in trainer.callback_handler.callbacks if isinstance(callback, TensorBoardCallback)
        )
        self._callback.logging_dir = self._callback.logging_dir or f"{trainer.args.output_dir}/runs/{name}"
        if self._callback.tb_writer is None and step:
            self._callback.tb_writer = SummaryWriter(self._callback.logging_dir, purge_step=step + 1)

    def __call__(self) -> Any:
        if self._callback.tb_writer is None:  # it closes its file when the training ends
            self._callback._init_summary_writer(None)
        return self._callback.tb_writer
