"""The generation engine, for labels and for evaluation: recordings of any length to tokens, text and times."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from datasets.utils import tqdm
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from distilwhisper.audio import AudioError, Samples, undecoded
from distilwhisper.chunking import join_chunks
from distilwhisper.ctranslate2_decoding import make_decoder
from distilwhisper.decoding import Fallback, States, Window
from distilwhisper.generation import Head
from distilwhisper.loading import load_speech
from distilwhisper.longform import transcribe_sequentially
from distilwhisper.models import default_device, load_processor, load_whisper
from distilwhisper.pieces import Cutting, LongPiece, Piece, read_pieces
from distilwhisper.segments import split_at_timestamps
from distilwhisper.spectrograms import log_mel
from distilwhisper.speculative import DRAFT_TOKENS, SpeculationReport
from distilwhisper.tokens import WhisperTokens
from distilwhisper.transcripts import Transcript, build_transcript

Key = TypeVar("Key", bound=Hashable)

# Recordings read ahead to make batches of equal length: 256 of 30 s take 490 MB.
READ_AHEAD = 256

Languages = Sequence[str | None] | None
OnBatch = Callable[[Sequence[Any], list[Transcript], Tensor], None]


class Transcriber:
    """Turns recordings of any length into text.

    A recording of up to one window (30 s in the published models) is heard at once. A longer one is transcribed in
    long form; that is decided recording by recording, whatever else is in the batch.

    Args:
        model: A model, or the path or Hub id of one. A model that is given stays where it is, unless ``dtype`` or
            ``device`` say otherwise; one that is loaded goes to the accelerator, if there is one.
        processor: Its processor; by default loaded from where the model came from.
        language: Code, name or token; by default detected, recording by recording.
        task: ``transcribe`` or ``translate`` (into English).
        return_timestamps: Generate timestamps.
        word_timestamps: Time every word, by the model's alignment heads.
        num_beams: 1 is greedy.
        batch_size: Recordings, or chunks of recordings, at a time.
        max_new_tokens: Longest transcript of a window, in tokens; by default whatever the decoder has positions for
            (448 less the prefix).
        long_form: ``chunked``: overlapping chunks, heard in one batch and joined where they agree; fast.
            ``sequential``: window after window with timestamps, as the Whisper paper does; slower, and what fallback
            and conditioning are made for. None refuses what is longer than the window.
        chunk_length_s: Length of a chunk; default the window. The paper has 15 s for a student.
        stride_s: What a chunk has on either side beyond its own part; default a sixth of it.
        temperature: 0 is greedy or beams. With several, such as ``(0, 0.2, 0.4, 0.6, 0.8, 1)``, a window that fails a
            threshold is decoded again at the next.
        compression_ratio_threshold: A text that compresses better than this fails; Whisper has 2.4.
        logprob_threshold: A mean log-probability below this fails; Whisper has -1.
        no_speech_threshold: A window whose no-speech probability is above this, and that fails ``logprob_threshold``
            if there is one, is silence; Whisper has 0.6.
        condition_on_prev: Prompt each window with the text before it (sequential).
        seed: Of the draws at temperatures above 0. A recording's do not depend on what else is in the batch.
        assistant: A student of the model, or the path or Hub id of one, which drafts what the model then checks:
            the same tokens in less time (greedy decoding; paper, section 3.4).
        draft_tokens: How many tokens the assistant drafts at a time.
        engine: ``torch``; or ``ctranslate2``, greedy alone, or with a number type of its own: ``ctranslate2:int8``.
        dtype: Number type; default that of the checkpoint, but float32 instead of float16 on a CPU.
        device: Where to run.
        **load_options: ``revision``, ``subfolder``, ``token`` and so on, for a path or Hub id.

    Raises:
        ValueError: If no processor can be found, or language, task or other settings are not the model's.
    """

    def __init__(
        self,
        model: WhisperForConditionalGeneration | str | Path,
        processor: WhisperProcessor | None = None,
        *,
        language: str | None = None,
        task: str = "transcribe",
        return_timestamps: bool = False,
        word_timestamps: bool = False,
        num_beams: int = 1,
        batch_size: int = 16,
        max_new_tokens: int | None = None,
        long_form: str | None = "chunked",
        chunk_length_s: float | None = None,
        stride_s: float | None = None,
        temperature: float | Sequence[float] = 0.0,
        compression_ratio_threshold: float | None = None,
        logprob_threshold: float | None = None,
        no_speech_threshold: float | None = None,
        condition_on_prev: bool = False,
        seed: int = 0,
        assistant: WhisperForConditionalGeneration | str | Path | None = None,
        draft_tokens: int = DRAFT_TOKENS,
        engine: str = "torch",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **load_options: Any,
    ) -> None:
        for name, count in (("batch_size", batch_size), ("num_beams", num_beams), ("draft_tokens", draft_tokens)):
            if count < 1:
                raise ValueError(f"{name} must be 1 or more, not {count}")
        self.model = _load_model(model, dtype, device, load_options)
        self.processor = processor or load_processor(self.model, load_options)
        self.tokens = self._look_up_tokens(timestamps=return_timestamps or long_form == "sequential")
        self.task, self.return_timestamps, self.batch_size = task, return_timestamps, batch_size
        self.language = self.check_language(language)
        self.condition_on_prev = condition_on_prev
        if condition_on_prev and (long_form != "sequential" or engine != "torch"):
            raise ValueError("condition_on_prev needs long_form='sequential' and engine='torch'")
        self.cutting = Cutting(self.sampling_rate, self.window_s, long_form, chunk_length_s, stride_s)
        temperatures = tuple(temperature) if isinstance(temperature, Sequence) else (temperature,)
        thresholds = compression_ratio_threshold, logprob_threshold, no_speech_threshold
        if assistant is not None:
            assistant = _load_model(assistant, self.model.dtype, self.model.device, {})
        self.engine = engine
        self.decoder = make_decoder(
            engine,
            self.model,
            self.processor,
            self.tokens,
            batch_size,
            task=task,
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
            fallback=Fallback(temperatures, *thresholds, seed=seed),
            word_times=word_timestamps,
            assistant=assistant,
            draft_tokens=draft_tokens,
        )

    def _look_up_tokens(self, *, timestamps: bool) -> WhisperTokens:
        config = self.model.generation_config
        tokens = WhisperTokens.from_tokenizer(
            self.processor.tokenizer, multilingual=getattr(config, "is_multilingual", None)
        )
        if timestamps and not hasattr(config, "no_timestamps_token_id"):
            # The timestamp rules need it, and configs that were not made for Whisper lack it.
            config.no_timestamps_token_id = tokens.no_timestamps
        return tokens

    def check_language(self, language: str | None) -> str | None:
        """Return the code of a language, None to detect it.

        Raises:
            ValueError: If the model does not know it, or not for its task.
        """
        code = None if language is None else self.tokens.language_code(language)
        if not self.tokens.multilingual:
            if code not in (None, "en") or self.task != "transcribe":
                raise ValueError(f"this model is English-only: it cannot {self.task} {language or 'en'!r}")
            code = "en"
        self.tokens.prefix(code or "en", self.task)  # refuses a wrong task now rather than after the encoder
        return code

    @property
    def speculation(self) -> SpeculationReport:
        """What became of the assistant's drafts so far: how many, and how many were right."""
        return self.decoder.speculation

    @property
    def sampling_rate(self) -> int:
        """Rate of the audio the model hears, in Hz."""
        return int(self.processor.feature_extractor.sampling_rate)

    @property
    def window_s(self) -> float:
        """Longest recording the model hears at once, in seconds."""
        return float(self._window_frames * self.processor.feature_extractor.hop_length / self.sampling_rate)

    @property
    def _window_frames(self) -> int:
        return 2 * int(self.model.config.max_source_positions)  # the second convolution has stride 2

    def __call__(self, audio: Any, *, audio_column: str = "audio") -> Any:
        """Transcribe one recording, or several.

        Args:
            audio: Anything `load_audio` reads; or a list of such; or a data set; or a
                directory that `load_speech` reads.
            audio_column: Column of the recordings in a data set.

        Returns:
            A `Transcript`, or a list of them in the order of the recordings.

        Raises:
            AudioError: For the first recording that is unusable, or longer than the window if ``long_form`` is None.
        """
        if isinstance(audio, (str, Path)) and Path(audio).is_dir():
            audio = load_speech(audio, audio_column=audio_column)
        if hasattr(audio, "column_names"):
            recordings: Iterable[Any] = (row[audio_column] for row in undecoded(audio, audio_column))
        elif isinstance(audio, list) and not (audio and isinstance(audio[0], (int, float))):
            recordings = audio
        else:
            return self([audio])[0]
        found, total = {}, len(audio) if hasattr(audio, "__len__") else None
        results = self.transcribe_many(enumerate(recordings))
        for index, transcript in tqdm(results, "Transcribing", total, disable=total == 1 or None):
            if isinstance(transcript, AudioError):
                raise AudioError(transcript.reason, f"recording {index}: {transcript}") from transcript
            found[index] = transcript
        return [found[index] for index in sorted(found)]

    def transcribe_many(
        self,
        recordings: Iterable[tuple[Key, Any]],
        *,
        num_workers: int = 0,
        on_batch: OnBatch | None = None,
    ) -> Iterator[tuple[Key, Transcript | AudioError]]:
        """Transcribe a stream of recordings; a bad one yields its error and stops nothing.

        The stream is read a little ahead, so that recordings of like length share a batch; memory does not grow with
        the number of recordings, nor with the length of a file.

        Args:
            recordings: Pairs of a name and whatever `load_audio` reads.
            num_workers: Threads that read and resample while the model runs; 0 for none.
            on_batch: Called with the names, transcripts and encoder outputs of each batch; recordings longer than the
                window are not among them.

        Yields:
            Pairs of name and result, not in the order of the stream.
        """
        head = self.decoder.head(self.model)
        pieces = read_pieces(recordings, self.cutting, num_workers, ahead=self.batch_size)
        ahead = max(self.batch_size, READ_AHEAD // self.batch_size * self.batch_size)
        while pool := list(islice(pieces, ahead)):
            yield from ((key, piece) for key, piece in pool if isinstance(piece, AudioError))
            good = [(key, piece) for key, piece in pool if isinstance(piece, Piece)]
            good.sort(key=lambda pair: len(pair[1].samples))
            for start in range(0, len(good), self.batch_size):
                yield from self._transcribe_batch(good[start : start + self.batch_size], head, on_batch)
            yield from self._transcribe_long((key, piece.value) for key, piece in pool if isinstance(piece, LongPiece))

    def _transcribe_batch(
        self, batch: Sequence[tuple[Key, Piece]], head: Head, on_batch: OnBatch | None
    ) -> Iterator[tuple[Key, Transcript | AudioError]]:
        pieces = [piece for _, piece in batch]
        durations = [len(piece.samples) / self.sampling_rate for piece in pieces]
        states = self.decoder.encode(self.extract_features([piece.samples for piece in pieces]))
        windows = self._decode(states, durations, head)
        whole = [row for row, piece in enumerate(pieces) if piece.recording is None]
        transcripts = [self._transcript(windows[row], durations[row]) for row in whole]
        keys = [batch[row][0] for row in whole]
        if on_batch is not None and whole:
            on_batch(keys, transcripts, states.model if len(whole) == len(batch) else states.model[whole])
        yield from zip(keys, transcripts, strict=True)
        for (key, piece), window, duration_s in zip(batch, windows, durations, strict=True):
            if piece.recording is not None and piece.recording.take(piece, window, duration_s):
                yield key, self._join(piece.recording.heard)

    def _transcribe_long(self, recordings: Iterable[tuple[Key, Any]]) -> Iterator[tuple[Key, Transcript | AudioError]]:
        finished = transcribe_sequentially(
            recordings,
            self.decoder,
            self.processor.feature_extractor,
            window_frames=self._window_frames,
            language=self.language,
            batch_size=self.batch_size,
            condition_on_prev=self.condition_on_prev,
        )
        for key, one in finished:
            if isinstance(one, AudioError):
                yield key, one
            else:
                parts = self.decoder, one.windows, one.ids, one.runs, one.times
                yield key, build_transcript(*parts, timestamps=True, duration_s=one.duration_s)

    def extract_features(self, audio: Sequence[Samples]) -> Tensor:
        """Return the log-mel features of recordings, padded to the window: ``[recordings, mels, frames]``.

        Args:
            audio: Mono samples at `sampling_rate`, each ``[samples]``.
        """
        extractor = self.processor.feature_extractor
        return log_mel(extractor, audio, self._window_frames * extractor.hop_length)

    def transcribe_features(
        self, input_features: Tensor, durations_s: Sequence[float] | None = None, *, head: Head | None = None
    ) -> list[Transcript]:
        """Transcribe one batch of log-mel features.

        Args:
            input_features: ``[batch, mels, frames]``, padded to the window.
            durations_s: Lengths of the recordings, in seconds; default the window.
            head: What `output_head` returned for this model, where many batches follow.
        """
        durations = durations_s or [self.window_s] * len(input_features)
        return self.transcribe_states(
            self.decoder.encode(input_features), durations, head or self.decoder.head(self.model)
        )

    def transcribe_states(
        self, states: States, durations_s: Sequence[float], head: Head, languages: Languages = None
    ) -> list[Transcript]:
        """Transcribe one batch of encoder outputs, with their languages if known; see `transcribe_features`."""
        windows = self._decode(states, durations_s, head, languages)
        return [self._transcript(window, duration) for window, duration in zip(windows, durations_s, strict=True)]

    def _decode(
        self, states: States, durations_s: Sequence[float], head: Head, known: Languages = None
    ) -> list[Window]:
        languages = [self.check_language(language) or self.language for language in known or [None] * len(durations_s)]
        return self.decoder.decode(
            states, timestamps=self.return_timestamps, languages=languages, durations_s=durations_s, head=head
        )

    def _transcript(self, window: Window, duration_s: float) -> Transcript:
        runs = split_at_timestamps(window.ids, self.tokens, offset_s=0.0, end_s=duration_s)
        parts = self.decoder, [window], window.ids, runs, window.times or ()
        return build_transcript(*parts, timestamps=self.return_timestamps, duration_s=duration_s)

    def _join(self, heard: Mapping[float, tuple[Window, float]]) -> Transcript:
        starts = sorted(heard)
        windows, ends = [heard[start][0] for start in starts], [heard[start][1] for start in starts]
        runs, ids, times = join_chunks(windows, starts, ends, self.tokens)
        parts = self.decoder, windows, ids, runs, times
        return build_transcript(*parts, timestamps=self.return_timestamps, duration_s=max(ends))


def _load_model(model: Any, dtype: torch.dtype | None, device: Any, options: dict[str, Any]) -> Any:
    if isinstance(model, (str, Path)):
        model = load_whisper(model, dtype, **options).eval()
        if device is None:
            device = default_device()
        if dtype is None and model.dtype == torch.float16 and torch.device(device).type == "cpu":
            dtype = torch.float32
    elif options:
        raise TypeError(f"{sorted(options)} tell how to load a model, but the model is loaded already")
    return model.to(device=device, dtype=dtype)
