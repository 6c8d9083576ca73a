"""One window of audio to text: prompts, fallback to higher temperatures, drafts by an assistant, times of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from distilwhisper.generation import GeneratedTokens, Head, detect_languages, encode, generate_tokens, output_head
from distilwhisper.metrics import compression_ratio
from distilwhisper.modeling import same_encoder
from distilwhisper.segments import Span
from distilwhisper.speculative import SpeculationReport, generate_speculatively
from distilwhisper.tokens import WhisperTokens
from distilwhisper.word_timing import alignment_heads, time_tokens

MOST_SIDE_BY_SIDE = 4
"""Batches that are held at once on a CPU of so many cores; one of more has one batch, on all of them."""


@dataclass(frozen=True)
class Fallback:
    """When a window is decoded again, at the next temperature (Radford et al. 2022, section 4.5).

    Attributes:
        temperatures: Tried in turn until a transcript passes; 0 is greedy or beams.
        compression_ratio_threshold: A text that compresses better than this is a loop.
        logprob_threshold: A transcript whose mean log-probability is below this is a guess.
        no_speech_threshold: A guess in a window whose no-speech probability is above this is silence, and no text;
            without ``logprob_threshold``, any transcript in such a window.
        seed: Of the draws above temperature 0.
    """

    temperatures: tuple[float, ...] = (0.0,)
    compression_ratio_threshold: float | None = None
    logprob_threshold: float | None = None
    no_speech_threshold: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperatures or min(self.temperatures) < 0:
            raise ValueError(f"temperature must be 0 or above, or several such, not {self.temperatures}")

    def is_guess(self, window: Window) -> bool:
        """Return whether the mean log-probability is too low."""
        return self.logprob_threshold is not None and window.avg_logprob < self.logprob_threshold

    def is_silence(self, window: Window) -> bool:
        """Return whether the window holds no speech."""
        if self.no_speech_threshold is None or (window.no_speech_prob or 0.0) <= self.no_speech_threshold:
            return False
        return self.logprob_threshold is None or self.is_guess(window)

    def is_failure(self, window: Window) -> bool:
        """Return whether the window should be decoded again."""
        limit = self.compression_ratio_threshold
        return (self.is_guess(window) or (limit is not None and window.compression_ratio > limit)) and not (
            self.is_silence(window)
        )


@dataclass(frozen=True)
class Window:
    """What was heard in one window.

    Attributes:
        ids: Ids of text and timestamps; timestamps count from the start of the window.
        text: The text, as the tokenizer decodes it.
        language: Code.
        sum_logprob: Sum of the log-probabilities of the tokens, the end of text among them.
        count: How many they are.
        no_speech_prob: Probability of silence; None if the tokenizer has no such token.
        capped: Whether the length limit cut the text off.
        temperature: The one that gave this.
        silent: Whether it counts as silence; then there are no ids.
        times: Start and end of each token of the text, in seconds from the start of the window, if asked for.
    """

    ids: list[int]
    text: str
    language: str
    sum_logprob: float
    count: int
    no_speech_prob: float | None
    capped: bool
    temperature: float
    silent: bool = False
    times: list[Span] | None = None

    @property
    def avg_logprob(self) -> float:
        """Mean natural log-probability of the tokens."""
        return self.sum_logprob / max(1, self.count)

    @property
    def compression_ratio(self) -> float:
        """Bytes of text to bytes of zlib."""
        return compression_ratio(self.text)


class States(NamedTuple):
    """Encoder outputs of a batch ``[batch, positions, d_model]``; the assistant's are the model's if it is the same."""

    model: Tensor
    assistant: Tensor | None


class WindowDecoder:
    """Decodes batches of windows.

    Args:
        model: A Whisper.
        tokenizer: Its tokenizer.
        tokens: Its special tokens.
        task: ``transcribe`` or ``translate``.
        num_beams: 1 is greedy.
        max_new_tokens: Longest transcript of a window, in tokens.
        fallback: When to decode again.
        word_times: Whether tokens are timed.
        assistant: A student that drafts for the model.
        draft_tokens: How far ahead it writes.

    Attributes:
        speculation: What became of the assistant's drafts.
    """

    def __init__(
        self,
        model: WhisperForConditionalGeneration,
        tokenizer: Any,
        tokens: WhisperTokens,
        *,
        task: str,
        num_beams: int,
        max_new_tokens: int | None,
        fallback: Fallback,
        word_times: bool,
        assistant: WhisperForConditionalGeneration | None,
        draft_tokens: int,
    ) -> None:
        self.model, self.tokenizer, self.tokens, self.task = model, tokenizer, tokens, task
        self.num_beams, self.max_new_tokens, self.fallback = num_beams, max_new_tokens, fallback
        self.word_times, self.assistant, self.draft_tokens = word_times, assistant, draft_tokens
        self.speculation = SpeculationReport()
        self._heads: dict[int, tuple[tuple[int, int], Tensor, Head]] = {}
        if word_times:
            alignment_heads(model)  # refuses a model without them now rather than after the encoder
        if assistant is not None:
            if num_beams > 1:
                raise ValueError(f"an assistant drafts for greedy decoding: num_beams must be 1, not {num_beams}")
            if assistant.config.vocab_size != model.config.vocab_size:
                vocabularies = f"{assistant.config.vocab_size} and {model.config.vocab_size} tokens"
                raise ValueError(
                    f"assistant and model have vocabularies of {vocabularies}: they do not belong together"
                )
            self._shares_encoder = same_encoder(assistant.model.encoder, model.model.encoder)

    @property
    def side_by_side(self) -> int:
        """How many batches may be decoded at a time, by threads of one core each.

        The operations of a step are too small to be shared out well. Many cores would be many batches to hold; and an
        assistant's report has one writer.
        """
        cores = torch.get_num_threads()
        few = self.model.device.type == "cpu" and cores <= MOST_SIDE_BY_SIDE
        return cores if few and self.assistant is None else 1

    def encode(self, input_features: Tensor) -> States:
        """Return the encoder's output of features ``[batch, mels, frames]``: one pass where both encoders agree."""
        states = encode(self.model, input_features)
        if self.assistant is None:
            return States(states, None)
        return States(states, states if self._shares_encoder else encode(self.assistant, input_features))

    def decode(
        self,
        states: States,
        *,
        timestamps: bool,
        languages: Sequence[str | None],
        durations_s: Sequence[float],
        prompts: Sequence[Sequence[int]] | None = None,
        seeds: Sequence[int] | None = None,
        head: Head | None = None,
    ) -> list[Window]:
        """Return what was heard, one window a row.

        Args:
            states: What `encode` returned.
            timestamps: Write timestamps.
            languages: Code of each row; None detects it.
            durations_s: Length of the audio in each window, in seconds.
            prompts: Ids that precede the start of each transcript.
            seeds: Of the draws, one a row; rows with one seed draw alike.
            head: What `output_head` returned for the model.
        """
        head = head or self.head(self.model)
        known = self._languages(languages, states, head)
        prompts = prompts or [[]] * len(known)
        prefixes = [
            [*prompt, *self.tokens.prefix(language, self.task, timestamps=timestamps)]
            for prompt, language in zip(prompts, known, strict=True)
        ]
        found: dict[int, Window] = {}
        rows = list(range(len(known)))
        for turn, temperature in enumerate(self.fallback.temperatures):
            row_seeds = [self.fallback.seed + 1009 * turn + 1_000_003 * (seeds[row] if seeds else 0) for row in rows]
            generated = self._generate(
                _select(states, rows, len(known)),
                [prefixes[row] for row in rows],
                timestamps=timestamps,
                temperature=temperature,
                seeds=row_seeds,
                head=head,
            )
            for place, row in enumerate(rows):
                found[row] = self._window(generated, place, known[row], temperature)
            rows = [row for row in rows if self.fallback.is_failure(found[row])]
            if not rows:
                break
        windows = [self._checked(found[row]) for row in range(len(known))]
        return self._timed(windows, states.model, known, durations_s) if self.word_times else windows

    def head(self, model: WhisperForConditionalGeneration) -> Head:
        """Return the model's `output_head`, made anew when its weights have changed."""
        # The transposed copy costs as much as ten tokens, so it is kept until the weights change. Changes in place
        # raise a tensor's version, but not those of fused optimisers; they change every row.
        weight = model.proj_out.weight
        if weight.is_inference():
            return output_head(model)
        version, sample = (weight.data_ptr(), weight._version), weight.detach()[::997].clone()
        kept = self._heads.get(id(model))
        if kept is None or kept[0] != version or not torch.equal(kept[1], sample):
            kept = self._heads[id(model)] = version, sample, output_head(model)
        return kept[2]

    def _languages(self, languages: Sequence[str | None], states: States, head: Head) -> list[str]:
        if None not in languages:
            return [language or "en" for language in languages]
        detected = detect_languages(self.model, self.tokens, states.model, head=head)
        return [language or found for language, found in zip(languages, detected, strict=True)]

    def _generate(
        self,
        states: States,
        prefixes: list[list[int]],
        *,
        timestamps: bool,
        temperature: float,
        seeds: list[int],
        head: Head,
    ) -> GeneratedTokens:
        common: dict[str, Any] = {
            "timestamps": timestamps,
            "max_new_tokens": self.max_new_tokens,
            "no_speech_token": self.tokens.no_speech,
            "head": head,
            "encoder_hidden_states": states.model,
        }
        if self.assistant is not None and states.assistant is not None and temperature == 0:
            return generate_speculatively(
                self.model,
                self.assistant,
                prefixes,
                assistant_states=states.assistant.to(self.assistant.dtype),
                draft_tokens=self.draft_tokens,
                assistant_head=self.head(self.assistant),
                report=self.speculation,
                **common,
            )
        return generate_tokens(
            self.model, prefixes, num_beams=self.num_beams, temperature=temperature, seeds=seeds, **common
        )

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of ids, timestamps left out, as the tokenizer decodes it."""
        return self.tokenizer.decode(  # type: ignore[no-any-return]
            self.tokens.without_timestamps(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _window(self, generated: GeneratedTokens, row: int, language: str, temperature: float) -> Window:
        ids, capped = self.tokens.text_and_timestamps(generated.ids[row]), generated.capped[row]
        return Window(
            ids=ids,
            text=self.text(ids),
            language=language,
            sum_logprob=generated.sum_logprobs[row],
            count=len(generated.ids[row]) + (not capped),
            no_speech_prob=None if generated.no_speech_probs is None else generated.no_speech_probs[row],
            capped=capped,
            temperature=temperature,
        )

    def _checked(self, window: Window) -> Window:
        return replace(window, ids=[], text="", silent=True) if self.fallback.is_silence(window) else window

    def _timed(
        self, windows: list[Window], states: Tensor, languages: list[str], durations_s: Sequence[float]
    ) -> list[Window]:
        prefixes = [self.tokens.prefix(language, self.task) for language in languages]
        texts = [self.tokens.without_timestamps(window.ids) for window in windows]
        times = time_tokens(self.model, prefixes, texts, states, durations_s)
        return [replace(window, times=spans) for window, spans in zip(windows, times, strict=True)]


def _select(states: States, rows: list[int], count: int) -> States:
    if len(rows) == count:
        return states
    assistant = None if states.assistant is None else states.assistant[rows]
    return States(states.model[rows], assistant)
