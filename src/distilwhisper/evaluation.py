"""How good a model is: word error rates on named test sets, with nothing left out unseen."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import count, islice
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from datasets.utils import tqdm

from distilwhisper.audio import AudioError, undecoded
from distilwhisper.metrics import count_character_errors, count_word_errors, normalized_texts
from distilwhisper.normalizers import Normalizer, get_normalizer
from distilwhisper.results import EvaluationResult, Failure, SetResult
from distilwhisper.transcription import Transcriber

logger = logging.getLogger(__name__)


def evaluate(
    model: Any,
    dataset: Any,
    processor: Any = None,
    *,
    language: str | None = None,
    text_column: str = "text",
    audio_column: str = "audio",
    batch_size: int = 16,
    normalizer: Normalizer | None = None,
    **options: Any,
) -> EvaluationResult:
    """Transcribe test sets and count the word errors.

    Every sample is scored, or counted as having an empty reference (once normalised), or listed as a failure. Under
    ``accelerate launch`` the processes share the samples: all of them must call this, and each gets the whole result.

    Args:
        model: A model, the path or Hub id of one, or a `Transcriber`, which keeps its own settings.
        dataset: A dataset, streamed or not, or a dictionary of named ones.
        processor: The model's processor; by default loaded from where the model came from.
        language: Language of the recordings; by default that of the `Transcriber`, or English.
        text_column: Column of the reference transcripts.
        audio_column: Column of the recordings.
        batch_size: Recordings at a time.
        normalizer: Used instead of the language's own (`get_normalizer`).
        **options: Further arguments of `Transcriber`, such as ``num_beams``.

    Raises:
        ValueError: If a column is missing, there are no sets, or the language is not that of the `Transcriber`.
    """
    sets: Mapping[str, Any] = dataset if isinstance(dataset, Mapping) else {"test": dataset}
    if not sets:
        raise ValueError("there is no test set in the dictionary; pass at least one")
    transcriber = _transcriber(model, processor, language, batch_size=batch_size, **options)
    normalize = normalizer or get_normalizer(language or transcriber.language)
    for rows in islice(sets.values(), 1):  # the first work of a device is slow, and would be held against the model
        list(transcriber.transcribe_many(islice(_recordings(rows, text_column, audio_column, {}), 1)))
    return EvaluationResult(
        {
            name: _evaluate_set(transcriber, rows, text_column, audio_column, normalize=normalize, name=name)
            for name, rows in sets.items()
        }
    )


def _transcriber(model: Any, processor: Any, language: str | None = None, **options: Any) -> Transcriber:
    if not isinstance(model, Transcriber):
        return Transcriber(model, processor, language=language or "en", **options)
    if None not in (language, model.language) and model.tokens.language_code(language or "") != model.language:
        raise ValueError(f"the Transcriber writes {model.language!r}, not {language!r}; give both one language")
    return model


def _recordings(
    rows: Any, text_column: str, audio_column: str, references: dict[int, str | None]
) -> Iterator[tuple[int, Any]]:
    """Yield position and audio of each row, and put its text into ``references``; without one its audio is None."""
    known = getattr(rows, "column_names", None) or (text_column, audio_column)
    if missing := [name for name in (text_column, audio_column) if name not in known]:
        raise ValueError(f"the test set has no column {missing[0]!r}, only {known}; name the right one")
    rows = undecoded(rows, audio_column) if hasattr(rows, "features") else rows
    first, step = _shard()
    if isinstance(rows, Dataset):
        mine = iter(rows.shard(step, first, contiguous=False))
    else:
        mine = islice(rows, first, None, step)
    for index, row in zip(count(first, step), mine, strict=False):
        references[index] = row[text_column]
        yield index, None if references[index] is None else row[audio_column]


def _evaluate_set(
    transcriber: Transcriber, rows: Any, text_column: str, audio_column: str, *, normalize: Normalizer, name: str
) -> SetResult:
    result, references, started = SetResult(), dict[int, str | None](), time.perf_counter()
    recordings = _recordings(rows, text_column, audio_column, references)
    total = len(rows) if hasattr(rows, "__len__") else None
    for index, transcript in tqdm(transcriber.transcribe_many(recordings), f"Evaluating {name}", total):
        if references[index] is None:
            result.failures.append(Failure(index, "missing_reference", "there is no reference transcript"))
        elif isinstance(transcript, AudioError):
            result.failures.append(Failure(index, transcript.reason, str(transcript)))
        else:
            result.audio_s += transcript.duration_s
            result.tokens += len(transcript.tokens)
            result.transcripts[index] = transcript.text
    result.seconds = time.perf_counter() - started
    result.transcripts = dict(sorted(result.transcripts.items()))
    result.failures.sort()
    for index, text in result.transcripts.items():
        _score(result, index, references[index] or "", text, normalize)
    result = _gather(result)
    if result.failures:
        reasons = dict(Counter(failure.reason for failure in result.failures))
        logger.warning("%d of %d samples of %s are not scored: %s", len(result.failures), result.samples, name, reasons)
    return result


def _score(result: SetResult, index: int, reference: str, hypothesis: str, normalize: Normalizer) -> None:
    pair = normalized_texts((reference, hypothesis), normalize)
    counts = count_word_errors(*pair)
    if counts.reference_words:
        result.counts[index] = counts
        result.orthographic += count_word_errors(reference, hypothesis)
        result.characters += count_character_errors(*pair)
    else:
        result.empty_references += counts


def _shard() -> tuple[int, int]:
    """Return this process's number and how many there are, as ``accelerate launch`` or ``torchrun`` set them up."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    state = PartialState()
    return state.process_index, state.num_processes


def _gather(result: SetResult) -> SetResult:
    """Return the sum of the results of all processes, which worked at the same time."""
    if _shard()[1] == 1:
        return result
    parts = gather_object([result])
    total = sum(parts, SetResult())
    total.seconds = max(part.seconds for part in parts)
    return total
