"""Transcription of ready-made batches: read ahead, heard side by side on few cores, halved where memory is short."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from distilwhisper.audio import AudioError, Samples, load_audio
from distilwhisper.batches import Batch, Halving
from distilwhisper.generation import evaluating
from distilwhisper.threads import prefetched
from distilwhisper.transcription import OnBatch, Transcriber
from distilwhisper.transcripts import Transcript

Key = TypeVar("Key", bound=Hashable)


class _Heard(NamedTuple, Generic[Key]):
    """What was heard in a batch, or in a piece of one that did not fit into memory."""

    keys: list[Key]
    transcripts: list[Transcript]
    states: Tensor | None


class BatchTranscriber:
    """Transcribes batches of recordings as they are given; what is longer than a window is refused.

    Args:
        transcriber: The model and its settings.
    """

    def __init__(self, transcriber: Transcriber) -> None:
        self.transcriber = transcriber
        self._run_in_memory = Halving()

    def __call__(
        self,
        batches: Iterable[Sequence[tuple[Key, Any]]],
        *,
        languages: Callable[[Key], str | None] | None = None,
        num_workers: int = 0,
        on_batch: OnBatch | None = None,
    ) -> Iterator[list[tuple[Key, Transcript | AudioError]]]:
        """Transcribe batches; one that does not fit into memory is halved.

        Args:
            batches: Pairs of a name and whatever `load_audio` reads, in batches.
            languages: Returns the language of a name, if it is known; by default the transcriber's settings say it.
            num_workers: Threads that read, resample and make log-mel features while the model runs; 0 for none.
            on_batch: Called with the names, transcripts and encoder outputs of each batch, or half of one.

        Yields:
            Pairs of name and result, a list for each batch.

        Raises:
            RuntimeError: If memory does not suffice for a single recording.
        """
        decoder = self.transcriber.decoder
        head = decoder.head(self.transcriber.model)

        def run(batch: Batch[Key]) -> list[_Heard[Key]]:
            states = decoder.encode(batch.features)
            known = None if languages is None else [languages(key) for key in batch.keys]
            transcripts = self.transcriber.transcribe_states(states, batch.durations_s, head, known)
            return [_Heard(batch.keys, transcripts, None if on_batch is None else states.model)]

        def prepare(recordings: Sequence[tuple[Key, Any]]) -> tuple[list[tuple[Key, AudioError]], Batch[Key]]:
            return self._prepare(recordings, languages)

        def transcribe(
            prepared: tuple[list[tuple[Key, AudioError]], Batch[Key]],
        ) -> tuple[list[tuple[Key, AudioError]], list[_Heard[Key]]]:
            bad, batch = prepared
            return bad, self._run_in_memory(run, batch)

        ready, beside = prefetched(prepare, batches, num_workers), decoder.side_by_side - 1
        # Once for all: what puts a model back while another batch is in it would make that one random.
        with evaluating(self.transcriber.model):
            for bad, pieces in prefetched(transcribe, ready, beside + 1 if beside else 0, ahead=beside):
                for piece in pieces:
                    if on_batch is not None and piece.states is not None:
                        on_batch(piece.keys, piece.transcripts, piece.states)
                yield [*bad, *(pair for each in pieces for pair in zip(each.keys, each.transcripts, strict=True))]

    def _prepare(
        self, recordings: Sequence[tuple[Key, Any]], languages: Callable[[Key], str | None] | None
    ) -> tuple[list[tuple[Key, AudioError]], Batch[Key]]:
        rate, bad, good = self.transcriber.sampling_rate, list[tuple[Key, AudioError]](), list[tuple[Key, Samples]]()
        for key, value in recordings:
            try:
                if languages is not None:
                    self._check_language(languages(key))
                good.append((key, load_audio(value, rate, max_duration_s=self.transcriber.window_s)))
            except AudioError as error:
                bad.append((key, error))
        features = self.transcriber.extract_features([audio for _, audio in good]) if good else torch.empty(0)
        return bad, Batch([key for key, _ in good], [len(audio) / rate for _, audio in good], features)

    def _check_language(self, language: str | None) -> None:
        try:
            self.transcriber.check_language(language)
        except ValueError as error:
            raise AudioError("unknown_language", str(error)) from error
