"""The generation engine, for labels and for evaluation: one window of audio to tokens and text."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from distilwhisper.audio import AudioError, Samples, load_audio, undecoded
from distilwhisper.batches import Batch, Halving, batches_of_stream, prefetched
from distilwhisper.generation import (
    GeneratedTokens,
    Head,
    detect_languages,
    encode,
    generate_tokens,
    output_head,
)
from distilwhisper.tokens import WhisperTokens

Key = TypeVar("Key", bound=Hashable)

HUB_OPTIONS = frozenset({"cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token"})


@dataclass(frozen=True)
class Transcript:
    """What a model heard in one recording.

    Attributes:
        text: The words, without special tokens.
        tokens: Ids of text and timestamps alone: no prompt, prefix or end.
        language: Language code, as asked for or detected.
        task: ``transcribe`` or ``translate``.
        timestamps: Whether the model was asked for timestamps.
        avg_logprob: Mean natural log-probability of the generated tokens, the end of text among them.
        no_speech_prob: Probability of ``<|nospeech|>`` at the start; None if the tokenizer lacks that token.
        compression_ratio: Bytes of text to bytes of zlib; above 2.4 it is likely a loop.
        capped: Whether the length limit cut the text off before its end.
        duration_s: Length of the recording, in seconds.
    """

    text: str
    tokens: list[int]
    language: str
    task: str
    timestamps: bool
    avg_logprob: float
    no_speech_prob: float | None
    compression_ratio: float
    capped: bool
    duration_s: float


OnBatch = Callable[[Sequence[Any], list[Transcript], Tensor], None]


class Transcriber:
    """Turns recordings of up to one window (30 s in the published models) into text.

    Args:
        model: A model, or the path or Hub id of one. A model that is given stays where it is, unless ``dtype`` or
            ``device`` say otherwise; one that is loaded goes to the accelerator, if there is one.
        processor: Its processor; by default loaded from where the model came from.
        language: Code, name or token; by default detected, recording by recording.
        task: ``transcribe`` or ``translate`` (into English).
        return_timestamps: Generate timestamps.
        num_beams: 1 is greedy.
        batch_size: Recordings at a time.
        max_new_tokens: Longest transcript, in tokens; by default whatever the decoder has positions for (448 less
            the prefix).
        dtype: Number type; default that of the checkpoint, but float32 instead of float16 on a CPU.
        device: Where to run.
        **load_options: ``revision``, ``subfolder``, ``token`` and so on, for a path or Hub id.

    Raises:
        ValueError: If no processor can be found, or language or task are not the model's.
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
        max_new_tokens: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **load_options: Any,
    ) -> None:
        if batch_size < 1 or num_beams < 1:
            raise ValueError(f"batch_size and num_beams must be 1 or more, not {batch_size} and {num_beams}")
        self.model = _load_model(model, dtype, device, load_options)
        self.processor = processor or _load_processor(self.model, load_options)
        self.tokens = WhisperTokens.from_tokenizer(
            self.processor.tokenizer, multilingual=getattr(self.model.generation_config, "is_multilingual", None)
        )
        if return_timestamps and not hasattr(self.model.generation_config, "no_timestamps_token_id"):
            # The timestamp rules need it, and configs that were not made for Whisper lack it.
            self.model.generation_config.no_timestamps_token_id = self.tokens.no_timestamps
        self.language = None if language is None else self.tokens.language_code(language)
        self.task, self.return_timestamps = task, return_timestamps
        if not self.tokens.multilingual:
            if self.language not in (None, "en") or task != "transcribe":
                raise ValueError(f"this model is English-only: it cannot {task} {language or 'en'!r}")
            self.language = "en"
        self.tokens.prefix(self.language or "en", task)  # refuses a wrong task now rather than after the encoder
        self.num_beams, self.batch_size, self.max_new_tokens = num_beams, batch_size, max_new_tokens
        self._run_in_memory = Halving()
        self._head: tuple[tuple[int, int], Tensor, Head] | None = None

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
            audio: Anything :func:`~distilwhisper.audio.load_audio` reads; or a list of such; or a ``Dataset``.
            audio_column: Column of the recordings in a dataset.

        Returns:
            A :class:`Transcript`, or a list of them in the order of the recordings.

        Raises:
            AudioError: For the first recording that is unusable or longer than the window.
        """
        if hasattr(audio, "column_names"):
            recordings: Iterable[Any] = (row[audio_column] for row in undecoded(audio, audio_column))
        elif isinstance(audio, list) and not (audio and isinstance(audio[0], (int, float))):
            recordings = audio
        else:
            return self([audio])[0]
        found = {}
        for index, transcript in self.transcribe_many(enumerate(recordings)):
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

        The stream is read a little ahead, so that recordings of like length share a batch.

        Args:
            recordings: Pairs of a name and whatever :func:`~distilwhisper.audio.load_audio` reads.
            num_workers: Threads that read and resample while the model runs; 0 for none.
            on_batch: Called with the names, transcripts and encoder outputs of each batch.

        Yields:
            Pairs of name and result, not in the order of the stream.
        """
        batches = batches_of_stream(recordings, self.batch_size, self.sampling_rate)
        for results in self.transcribe_batches(batches, num_workers=num_workers, on_batch=on_batch):
            yield from results

    def transcribe_batches(
        self,
        batches: Iterable[Sequence[tuple[Key, Any]]],
        *,
        num_workers: int = 0,
        on_batch: OnBatch | None = None,
    ) -> Iterator[list[tuple[Key, Transcript | AudioError]]]:
        """Transcribe batches of recordings as they are given; one that does not fit into memory is halved.

        Args:
            batches: Pairs of a name and whatever :func:`~distilwhisper.audio.load_audio` reads, in batches.
            num_workers: Threads that read, resample and make log-mel features while the model runs; 0 for none.
            on_batch: Called with the names, transcripts and encoder outputs of each batch, or half of one.

        Yields:
            Pairs of name and result, a list for each batch.

        Raises:
            RuntimeError: If memory does not suffice for a single recording.
        """
        head = self._output_head()

        def run(batch: Batch[Key]) -> list[Transcript]:
            states = encode(self.model, batch.features)
            transcripts = self._transcribe_states(states, batch.durations_s, head)
            if on_batch is not None:
                on_batch(batch.keys, transcripts, states)
            return transcripts

        for bad, batch in prefetched(self._prepare, batches, num_workers):
            yield [*bad, *zip(batch.keys, self._run_in_memory(run, batch), strict=True)]

    def _prepare(self, recordings: Sequence[tuple[Key, Any]]) -> tuple[list[tuple[Key, AudioError]], Batch[Key]]:
        loaded = [self._load(recording) for recording in recordings]
        bad = [(key, audio) for key, audio in loaded if isinstance(audio, AudioError)]
        good = [(key, audio) for key, audio in loaded if not isinstance(audio, AudioError)]
        durations = [len(audio) / self.sampling_rate for _, audio in good]
        features = self.extract_features([audio for _, audio in good]) if good else torch.empty(0)
        return bad, Batch([key for key, _ in good], durations, features)

    def extract_features(self, audio: Sequence[Samples]) -> Tensor:
        """Return the log-mel features of recordings, padded to the window: ``[recordings, mels, frames]``.

        Args:
            audio: Mono samples at :attr:`sampling_rate`, each ``[samples]``.
        """
        extractor = self.processor.feature_extractor
        features = extractor(
            list(audio),
            sampling_rate=self.sampling_rate,
            return_tensors="pt",
            padding="max_length",
            max_length=self._window_frames * extractor.hop_length,
        )
        return features.input_features  # type: ignore[no-any-return]

    def transcribe_features(
        self, input_features: Tensor, durations_s: Sequence[float] | None = None, *, head: Head | None = None
    ) -> list[Transcript]:
        """Transcribe one batch of log-mel features.

        Args:
            input_features: ``[batch, mels, frames]``, padded to the window.
            durations_s: Lengths of the recordings, in seconds; default the window.
            head: What :func:`output_head` returned for this model, where many batches follow.
        """
        durations = durations_s or [self.window_s] * len(input_features)
        return self._transcribe_states(encode(self.model, input_features), durations, head or self._output_head())

    def _transcribe_states(self, states: Tensor, durations_s: Sequence[float], head: Head) -> list[Transcript]:
        languages = [self.language] * len(states)
        if self.language is None:
            languages = list(detect_languages(self.model, self.tokens, states, head=head))
        generated = generate_tokens(
            self.model,
            [self.tokens.prefix(code, self.task, timestamps=self.return_timestamps) for code in languages],
            encoder_hidden_states=states,
            timestamps=self.return_timestamps,
            max_new_tokens=self.max_new_tokens,
            num_beams=self.num_beams,
            no_speech_token=self.tokens.no_speech,
            head=head,
        )
        return [
            self._transcript(generated, row, language or "en", duration)
            for row, (language, duration) in enumerate(zip(languages, durations_s, strict=True))
        ]

    def _output_head(self) -> Head:
        # The transposed copy costs as much as ten tokens, so it is kept until the weights change. Changes in place
        # raise a tensor's version, but not those of fused optimisers; they change every row.
        weight = self.model.proj_out.weight
        if weight.is_inference():
            return output_head(self.model)
        version, rows = (weight.data_ptr(), weight._version), weight.detach()[::997].clone()
        if self._head is None or self._head[0] != version or not torch.equal(self._head[1], rows):
            self._head = version, rows, output_head(self.model)
        return self._head[2]

    def _transcript(self, generated: GeneratedTokens, row: int, language: str, duration_s: float) -> Transcript:
        ids = self.tokens.text_and_timestamps(generated.ids[row])
        text = self.processor.tokenizer.decode(
            self.tokens.without_timestamps(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        ).strip()
        return Transcript(
            text=text,
            tokens=ids,
            language=language,
            task=self.task,
            timestamps=self.return_timestamps,
            avg_logprob=generated.avg_logprobs[row],
            no_speech_prob=None if generated.no_speech_probs is None else generated.no_speech_probs[row],
            compression_ratio=_compression_ratio(text),
            capped=generated.capped[row],
            duration_s=duration_s,
        )

    def _load(self, recording: tuple[Key, Any]) -> tuple[Key, Samples | AudioError]:
        key, value = recording
        try:
            return key, load_audio(value, self.sampling_rate, max_duration_s=self.window_s)
        except AudioError as error:
            return key, error


def _load_model(model: Any, dtype: torch.dtype | None, device: Any, options: dict[str, Any]) -> Any:
    if isinstance(model, (str, Path)):
        model = WhisperForConditionalGeneration.from_pretrained(model, dtype=dtype or "auto", **options).eval()
        if device is None:
            device = _default_device()
        if dtype is None and model.dtype == torch.float16 and torch.device(device).type == "cpu":
            dtype = torch.float32
    elif options:
        raise TypeError(f"{sorted(options)} tell how to load a model, but the model is loaded already")
    return model.to(device=device, dtype=dtype)


def _default_device() -> torch.device:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return torch.device("cpu")
    # Processes that were started together on one machine take a device each.
    return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", 0)) % torch.accelerator.device_count())


def _load_processor(model: WhisperForConditionalGeneration, options: dict[str, Any]) -> WhisperProcessor:
    if not model.name_or_path:
        raise ValueError("the model does not say where it came from: pass its processor")
    hub_options = {name: value for name, value in options.items() if name in HUB_OPTIONS}
    return WhisperProcessor.from_pretrained(model.name_or_path, **hub_options)


def _compression_ratio(text: str) -> float:
    data = text.encode("utf-8")
    return len(data) / len(zlib.compress(data))
