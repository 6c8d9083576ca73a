"""Transcription of ready-made batches: read ahead, heard side by side on few cores, halved where memory is short."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from threading import Lock
from typing import Any, TypeVar

import torch

from distilwhisper.audio import AudioError, Samples, load_audio
from distilwhisper.batches import Batch, Halving
from distilwhisper.generation import evaluating
from distilwhisper.threads import prefetched
from distilwhisper.transcription import OnBatch, Transcriber
from distilwhisper.transcripts import Transcript

Key = TypeVar("Key", bound=Hashable)
Bad = list[tuple[Key, AudioError]]


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
            on_batch: Called with the names, transcripts and encoder outputs of each batch, or half of one, where it was
                heard, and never twice at once.

        Yields:
            Pairs of name and result, a list for each batch.

        Raises:
            RuntimeError: If memory does not suffice for a single recording.
        """
        decoder = self.transcriber.decoder
        head = decoder.head(self.transcriber.model)
        one_at_a_time = Lock()

        def run(batch: Batch[Key]) -> list[Transcript]:
            states = decoder.encode(batch.features)
            known = None if languages is None else [languages(key) for key in batch.keys]
            transcripts = self.transcriber.transcribe_states(states, batch.durations_s, head, known)
            if on_batch is not None:
                with one_at_a_time:
                    on_batch(batch.keys, transcripts, states.model)
            return transcripts

        def transcribe(prepared: tuple[Bad[Key], Batch[Key]]) -> list[tuple[Key, Transcript | AudioError]]:
            bad, batch = prepared
            return [*bad, *zip(batch.keys, self._run_in_memory(run, batch), strict=True)]

        ready = prefetched(lambda recordings: self._prepare(recordings, languages), batches, num_workers)
        threads = decoder.side_by_side if decoder.side_by_side > 1 else 0
        # Once for all: what puts a model back while another batch is in it would make that one random.
        with evaluating(self.transcriber.model):
            yield from prefetched(transcribe, ready, threads, ahead=threads - 1)

    def _prepare(
        self, recordings: Sequence[tuple[Key, Any]], languages: Callable[[Key], str | None] | None
    ) -> tuple[Bad[Key], Batch[Key]]:
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
