"""Pseudo-labels: a teacher's transcripts of a data set, as columns beside the recordings."""

from __future__ import annotations

import errno
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_from_disk
from datasets.utils import tqdm
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from distilwhisper.audio import AudioError, undecoded
from distilwhisper.batch_transcription import BatchTranscriber
from distilwhisper.batches import TokenBudget, plan_batches, stated_duration
from distilwhisper.cache import CacheKey
from distilwhisper.caching import StateRecorder, training_collator
from distilwhisper.collator import Sample
from distilwhisper.label_store import Columns, LabelStore
from distilwhisper.labels import LABEL_FEATURES as LABEL_FEATURES
from distilwhisper.labels import Label, LabelReport, join_labels, label_of, previous_texts, without_labels
from distilwhisper.run_ids import keep_run_id
from distilwhisper.shards import write_atomically
from distilwhisper.transcription import OnBatch, Transcriber
from distilwhisper.transcripts import Transcript
from distilwhisper.worklist import LEASE_S

logger = logging.getLogger(__name__)

SHARD_ROWS = 512
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class PseudoLabeler:
    """Transcribes a data set with a teacher (paper, section 3.3: sequence-level distillation).

    Labels are the teacher's own tokens, whatever their length: one that hits the decoder's limit is marked
    (``whisper_capped``), not closed. A recording that cannot be used is set aside with its reason.

    Args:
        model: The teacher, or the path or Hub id of one.
        processor: Its processor; by default loaded from where the teacher came from.
        language: Code, name or token; by default detected, recording by recording.
        task: ``transcribe`` or ``translate``.
        return_timestamps: Label with timestamps.
        num_beams: 1 is greedy.
        batch_size: Recordings at a time.
        token_budget: What bounds a batch instead: the positions of keys and values that a layer of the decoder may hold
            for it, window and text of all its recordings (`TokenBudget`). Batches of
            short recordings are then larger, as far as memory allows.
        **options: ``max_new_tokens``, ``dtype``, ``device``, ``engine`` and what else
            `Transcriber` takes. Recordings longer than the window are set aside,
            unless ``long_form`` says otherwise.

    Attributes:
        set_aside: After `label`, the rows without a label: ``index``, ``id``, ``reason``, ``message``, and
            ``split`` for a ``DatasetDict``.
        report: After `label`, the counts.
    """

    def __init__(
        self,
        model: WhisperForConditionalGeneration | str | Path,
        processor: WhisperProcessor | None = None,
        *,
        language: str | None = None,
        task: str = "transcribe",
        return_timestamps: bool = False,
        num_beams: int = 1,
        batch_size: int = 16,
        token_budget: int | None = None,
        **options: Any,
    ) -> None:
        self.transcriber = Transcriber(
            model,
            processor,
            language=language,
            task=task,
            return_timestamps=return_timestamps,
            num_beams=num_beams,
            batch_size=batch_size,
            **{"long_form": None, **options},
        )
        self._transcribe_batches = BatchTranscriber(self.transcriber)
        config = self.transcriber.model.config
        sizes = config.max_source_positions, config.max_target_positions
        self._budget = None if token_budget is None else TokenBudget(token_budget, *sizes)
        self.set_aside: list[dict[str, Any]] = []
        self.report = LabelReport()

    def label(
        self,
        dataset: Any,
        output_dir: str | Path | None = None,
        *,
        audio_column: str = "audio",
        text_column: str = "text",
        id_column: str | None = None,
        speaker_column: str | Sequence[str] | None = None,
        language_column: str | None = None,
        num_workers: int = 2,
        cache_dir: str | Path | None = None,
        encoder_dtype: str = "model",
        shard_rows: int = SHARD_ROWS,
        lease_s: float = LEASE_S,
    ) -> Any:
        """Label a data set.

        With an ``output_dir`` this may be killed at any moment, and called again with the same arguments it does what
        is missing. Any number of processes may call it at once, on any machines that share the directory; each
        returns when all is done.

        Args:
            dataset: A ``Dataset`` or ``IterableDataset``, or a dict of them. A stream must yield the same rows at every
                pass, and needs an ``output_dir``.
            output_dir: Where to save the result (``load_from_disk`` reads it), ``set_aside.jsonl`` and
                ``report.json``; default nowhere.
            audio_column: Column of the recordings.
            text_column: Column of the reference transcripts, which need not exist.
            id_column: Column that names rows that are set aside; default ``id``, where there is one.
            speaker_column: Column of speakers, or several: ``("speaker_id", "recording_id")``. With it, rows get
                ``whisper_prompt``: the text tokens of the row before, where that has the same values in all of them
                and a label. Rows of a speaker should be in order.
            language_column: Column of languages; where it is empty, the labeller's own language counts.
            num_workers: Threads that read recordings and make features while the model runs.
            cache_dir: Directory for the encoder's output and the teacher's hidden states on the labels, which the
                training then need not compute (``state_cache``); default nowhere. Needs the engine ``torch``.
            encoder_dtype: Form of the encoder's output there: ``model``, as computed, or ``int8``.
            shard_rows: Rows that a process takes at a time, and that are sorted by length together.
            lease_s: Seconds after which a process on another machine that gives no sign of life counts as dead.

        Returns:
            A ``Dataset``, or a ``DatasetDict``: the rows that got a label, in order, with all their columns and those
            of ``LABEL_FEATURES``; ``duration_s`` only if they did not have it.

        Raises:
            TypeError: If the data set is none of these.
            ValueError: If a column is missing, or a stream is to go nowhere, or ``output_dir`` holds something else or
                labels that were begun with other settings, or another engine is to fill a cache.
            OSError: If the disk is full; what is labelled by then is kept.
        """
        speakers = (speaker_column,) if isinstance(speaker_column, str) else tuple(speaker_column or ())
        names = Columns(audio_column, text_column, id_column, speakers, language_column)
        parts = {split: _ready(part, names, output_dir) for split, part in _splits(dataset).items()}
        self.set_aside, self.report = [], LabelReport()
        recorder = None
        if cache_dir is not None:
            if self.transcriber.engine != "torch":
                raise ValueError("states for the training come from PyTorch: give no cache_dir, or engine='torch'")
            collator = training_collator(self.transcriber, audio_column=audio_column)
            recorder = StateRecorder(
                self.transcriber, cache_dir, collator, encoder_dtype=encoder_dtype, num_workers=num_workers
            )
        job = _Job(names, num_workers, recorder)
        labelled: dict[str, Dataset] = {}
        with _saying_where_it_is_full(output_dir):
            for split, part in parts.items():
                if output_dir is None:
                    labelled[split] = self._label_in_memory(part, job, split)
                else:
                    store = LabelStore(
                        Path(output_dir, split), part, names, self._settings(names),
                        text_tokens=self.transcriber.tokens.without_timestamps, shard_rows=shard_rows, lease_s=lease_s,
                    )  # fmt: skip
                    labelled[split] = self._label_into(store, job, split)
            if output_dir is not None:
                keep_run_id(output_dir)
                if isinstance(dataset, dict):
                    self._save_splits(Path(output_dir), list(parts))
        logger.info("%s", self.report)
        return DatasetDict(labelled) if isinstance(dataset, dict) else labelled[""]

    def label_rows(
        self, rows: Iterable[tuple[int, Any]], *, num_workers: int = 0, on_batch: OnBatch | None = None
    ) -> Iterator[tuple[int, Transcript | AudioError]]:
        """Label a stream of numbered recordings.

        Args:
            rows: Pairs of a number and anything `load_audio` reads.
            num_workers: Threads that read recordings while the model runs.
            on_batch: Called with numbers, labels and encoder outputs of each batch.

        Yields:
            Number and label, or number and problem; each number once, not in order.
        """
        return self.transcriber.transcribe_many(rows, num_workers=num_workers, on_batch=on_batch)

    def _label_in_memory(self, data: Dataset, job: _Job, split: str) -> Dataset:
        started = time.perf_counter()
        labels: list[Label | None] = [None] * len(data)
        problems: dict[int, AudioError] = {}
        rows_done = 0
        with _progress(len(data), split) as show:
            for results in self._label_shard(data, set(), job):
                for row, result in results:
                    if isinstance(result, AudioError):
                        problems[row] = result
                    else:
                        labels[row] = result
                rows_done += len(results)
                show(rows_done, sum(label["duration_s"] for _, label in results if isinstance(label, dict)))
        for row, problem in sorted(problems.items()):
            where = {"index": row, "id": job.names.identify(data, row)} | ({"split": split} if split else {})
            self.set_aside.append({**where, "reason": problem.reason, "message": str(problem)})
        texts = data[job.names.text] if job.names.text in data.column_names else [None] * len(data)
        for label, text in zip(labels, texts, strict=True):
            if label is not None:
                self.report.add(label, text)
        self.report.set_aside.update(problem.reason for problem in problems.values())
        prompts = None
        if job.names.speaker:
            prompts = previous_texts(labels, job.names.speakers(data), self.transcriber.tokens.without_timestamps)
        result = join_labels(data, labels, prompts)
        if job.recorder is not None:
            job.recorder.record_all(result)  # sequences with prompts, which take the label of the row before
            logger.info("%s", job.recorder.report)
        self.report.elapsed_s += time.perf_counter() - started
        return result

    def _label_into(self, store: LabelStore, job: _Job, split: str) -> Dataset:
        with _progress(store.source.num_rows, split) as show:
            store.label(lambda rows, done: self._label_shard(rows, done, job), show)
        store.write()
        if job.recorder is not None:
            job.recorder.record_files(store.each_file())
            logger.info("%s", job.recorder.report)
        self.report.add_report(LabelReport.from_json((store.directory / "report.json").read_text()))
        with (store.directory / "set_aside.jsonl").open(encoding="utf-8") as file:
            self.set_aside += [{**json.loads(line), **({"split": split} if split else {})} for line in file]
        return load_from_disk(str(store.directory))

    def _label_shard(self, rows: Dataset, done: set[int], job: _Job) -> Iterator[list[tuple[int, Label | AudioError]]]:
        """Label the rows that are not done, in the very batches that all rows would make."""
        recordings = rows.select_columns(job.names.audio)
        durations = [stated_duration(row[job.names.audio], self.transcriber.sampling_rate) for row in recordings]
        planned = plan_batches(durations, self.transcriber.batch_size, self._budget)
        batches = [batch for batch in planned if not done.issuperset(batch)]

        languages = rows[job.names.language][:] if job.names.language else None

        def record(indices: Sequence[int], transcripts: list[Transcript], states: Tensor) -> None:
            samples = [Sample({**rows[i], **label_of(t)}, i) for i, t in zip(indices, transcripts, strict=True)]
            if job.recorder is not None:
                job.recorder.record(samples, states)

        for results in self._transcribe_batches(
            ([(row, recordings[row][job.names.audio]) for row in batch] for batch in batches),
            languages=None if languages is None else languages.__getitem__,
            num_workers=job.num_workers,
            on_batch=record if job.recorder is not None else None,
        ):
            yield [(row, result if isinstance(result, AudioError) else label_of(result)) for row, result in results]

    def _settings(self, names: Columns) -> dict[str, Any]:
        """Return what decides the labels; all weights are read, about 3 s for large-v3."""
        model, teller = self.transcriber.model, self.transcriber
        key = CacheKey.of(model.model.encoder, model, teller.processor.feature_extractor, dtype=model.dtype)
        config = model.generation_config
        return {
            "teacher weights": f"{key.encoder_weights[:16]} {key.decoder_weights[:16]}",
            "engine": teller.engine,
            "number type": key.dtype,
            "feature extractor": key.features,
            "language": teller.language or "detected",
            "task": teller.task,
            "timestamps": teller.return_timestamps,
            "beams": teller.decoder.num_beams,
            "max_new_tokens": teller.decoder.max_new_tokens,
            "suppressed tokens": [config.suppress_tokens, config.begin_suppress_tokens],
            **{f"{name} column": column for name, column in names._asdict().items()},
        }

    def _save_splits(self, directory: Path, splits: list[str]) -> None:
        lines = [json.dumps(problem, ensure_ascii=False) + "\n" for problem in self.set_aside]
        write_atomically(directory / "set_aside.jsonl", "".join(lines))
        write_atomically(directory / "report.json", self.report.to_json() + "\n")
        write_atomically(directory / "dataset_dict.json", json.dumps({"splits": splits}))


@dataclass(frozen=True)
class _Job:
    """What all parts of a data set have in common."""

    names: Columns
    num_workers: int
    recorder: StateRecorder | None


def _splits(dataset: Any) -> dict[str, Any]:
    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        return dict(dataset)
    if isinstance(dataset, (Dataset, IterableDataset)):
        return {"": dataset}
    raise TypeError(
        f"a {type(dataset).__name__} cannot be labelled; pass a Dataset, an IterableDataset or a dict of them "
        "(load_speech makes them of folders, manifests, parquet and tar files)"
    )


def _ready(data: Any, names: Columns, output_dir: str | Path | None) -> Any:
    """Return rows with undecoded audio and without the labels of before."""
    if output_dir is None and isinstance(data, IterableDataset):
        raise ValueError("a stream is labelled into a directory: pass output_dir")
    data = undecoded(data, names.audio).with_format(None)
    names.check(data)
    return without_labels(data, prompts=bool(names.speaker))


@contextmanager
def _progress(rows: int | None, split: str) -> Iterator[Callable[[int, float], None]]:
    """Show rows, the time left, hours of audio, and time by length of audio."""
    started, heard_s = time.perf_counter(), 0.0
    with tqdm(total=rows, desc=split or "pseudo-labels", unit="clip") as bar:

        def show(rows_done: int, seconds: float) -> None:
            nonlocal heard_s
            if not heard_s and not seconds:
                bar.initial = bar.n = rows_done  # done before, and no measure of the time that is left
            heard_s += seconds
            factor = (time.perf_counter() - started) / heard_s if heard_s else 0.0
            bar.set_postfix_str(f"{heard_s / 3600:.2f} h of audio, {factor:.3f} x real time", refresh=False)
            bar.update(max(0, rows_done - bar.n))

        show(0, 0.0)
        yield show


@contextmanager
def _saying_where_it_is_full(directory: str | Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if directory is None or error.errno not in _FULL:
            raise
        message = f"there is no room left in {directory}: what is labelled is kept; make room and start again"
        raise OSError(error.errno, message) from error
