"""What a model heard in a recording, put together from its windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from distilwhisper.decoding import Window, WindowDecoder
from distilwhisper.segments import Segment, Span, Word, group_words

Run = tuple[float, float, list[int]]


@dataclass(frozen=True)
class Transcript:
    """What a model heard in one recording.

    Of a recording longer than the window, log-probability is the mean over all tokens, the no-speech probability the
    lowest and the compression ratio the highest of its windows.

    Attributes:
        text: The words, without special tokens.
        tokens: Ids of text and timestamps alone: no prompt, prefix or end. Chunked long form has no timestamps here;
            in sequential long form they count from the start of each window.
        language: Language code, as asked for or detected.
        task: ``transcribe`` or ``translate``.
        timestamps: Whether the model was asked for timestamps.
        avg_logprob: Mean natural log-probability of the generated tokens, the end of text among them.
        no_speech_prob: Probability of ``<|nospeech|>`` at the start; None if the tokenizer lacks that token.
        compression_ratio: Bytes of text to bytes of zlib; above 2.4 it is likely a loop.
        capped: Whether the length limit cut the text off before its end.
        duration_s: Length of the recording, in seconds.
        segments: What was said between timestamps; without timestamps one segment, or one for each chunk that could
            not be joined with the chunk before.
        words: The words and their times, if asked for.
        temperature: The highest at which a window was decoded.
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
    segments: list[Segment] = field(default_factory=list)
    words: list[Word] | None = None
    temperature: float = 0.0


def build_transcript(
    decoder: WindowDecoder,
    windows: Sequence[Window],
    ids: list[int],
    runs: Sequence[Run],
    times: Sequence[Span],
    *,
    timestamps: bool,
    duration_s: float,
) -> Transcript:
    """Return the transcript of a recording.

    Args:
        decoder: What decoded the windows.
        windows: What was heard, window by window; one at least.
        ids: Ids of the whole, timestamps among them or not.
        runs: Text between timestamps: start and end in seconds, ids.
        times: Start and end of each token of the text, in seconds; used if the decoder times tokens.
        timestamps: Whether timestamps were asked for.
        duration_s: Length of the recording, in seconds.
    """
    languages = [window.language for window in windows]
    language = max(languages, key=languages.count)
    probabilities = [window.no_speech_prob for window in windows if window.no_speech_prob is not None]
    words = None
    if decoder.word_times:
        words = group_words(decoder.tokens.without_timestamps(ids), times, decoder.text, language)
    return Transcript(
        text=decoder.text(ids).strip(),
        tokens=ids,
        language=language,
        task=decoder.task,
        timestamps=timestamps,
        avg_logprob=sum(window.sum_logprob for window in windows) / max(1, sum(window.count for window in windows)),
        no_speech_prob=min(probabilities, default=None),
        compression_ratio=max(window.compression_ratio for window in windows),
        capped=any(window.capped for window in windows),
        duration_s=duration_s,
        segments=[Segment(start_s, end_s, decoder.text(run).strip(), run) for start_s, end_s, run in runs],
        words=words,
        temperature=max(window.temperature for window in windows),
    )
