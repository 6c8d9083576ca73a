"""Whether an export gives the tokens that the model gives in Transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from distilwhisper.audio import Samples, load_audio
from distilwhisper.export.formats import FORMATS, ExportError
from distilwhisper.export.runtimes import run_format
from distilwhisper.generation import encode, forced_logits, generate_tokens
from distilwhisper.grammar import draw_sentence
from distilwhisper.synthesis import synthesize
from distilwhisper.transcription import Transcriber

Logits = npt.NDArray[np.float32]

MAX_NEW_TOKENS = 64
_RECORDINGS = 4


@dataclass(frozen=True)
class ParityReport:
    """What the check of an export found.

    A token of the runtime that differs counts only where the model was sure of its own: where the margin between its
    best two logits is larger than the error of the export's number type. From there on the two transcripts have
    different pasts, so the rest of that recording is not compared.

    Attributes:
        format: The format.
        dtype: Number type or quantisation of the export.
        audio: What was heard: ``given``, ``eSpeak NG`` or ``tones``.
        recordings: How many.
        tokens: Number of tokens that the model gave, each end of text among them.
        equal: Number of tokens that the runtime gave as well.
        undecided: Number of tokens not compared, for they follow a difference where the model was not sure.
        differences: For each recording with a difference that counts: its number, the position, the expected and the
            given id (None: no more tokens) and the margin.
        tolerance: Share of the logits' standard deviation that margins are compared with.
        logit_difference: Largest difference of a logit of the same history; None if the runtime tells none.
        logit_deviation: Standard deviation of the model's logits, to compare with.
    """

    format: str
    dtype: str
    audio: str
    recordings: int
    tokens: int
    equal: int
    undecided: int
    differences: list[dict[str, Any]]
    tolerance: float
    logit_difference: float | None
    logit_deviation: float

    @property
    def passed(self) -> bool:
        """Whether no difference counts, and at least one token was compared."""
        return not self.differences and self.equal > 0

    def to_dict(self) -> dict[str, Any]:
        """Return all figures by name."""
        return {"passed": self.passed, **asdict(self)}

    def to_json(self) -> str:
        """Return `to_dict` as a JSON document."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        text = f"{self.format} ({self.dtype}) gives {self.equal} of {self.tokens} tokens as Transformers does"
        if self.undecided:
            text += f", {self.undecided} are undecided as the model is less sure than {self.dtype} is exact"
        if self.differences:
            first = self.differences[0]
            text += f"; it differs in {len(self.differences)} of {self.recordings} recordings ({self.audio}), first in "
            text += (
                f"recording {first['recording']}, token {first['position']}: {first['given']}, not {first['expected']}"
            )
        if self.logit_difference is not None:
            text += f"; logits differ by {self.logit_difference:.2g} at most (deviation {self.logit_deviation:.2g})"
        return text


class _Reference(NamedTuple):
    """What the model itself gives for one recording; ``tokens`` end in the end of text unless they were cut off."""

    tokens: list[int]
    margins: list[float]
    logits: Logits  # [tokens, vocabulary]


def check_parity(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    export_dir: Path,
    format: str,
    *,
    dtype: str,
    audio: Sequence[Any] | None = None,
    language: str | None = None,
) -> ParityReport:
    """Run an export in its runtime on the model's features, or on its audio, and compare.

    Args:
        model: The model that was exported; float32 afterwards.
        processor: Its processor.
        export_dir: The export.
        format: Its format.
        dtype: Its number type or quantisation.
        audio: Recordings, of which the first window is heard; by default `builtin_audio`.
        language: Their language; default English.

    Raises:
        ExportError: If the runtime does not take the export.
    """
    transcriber = Transcriber(model.float(), processor)
    rate, length = transcriber.sampling_rate, int(transcriber.window_s * transcriber.sampling_rate)
    name, recordings = builtin_audio() if audio is None else ("given", [load_audio(one, rate) for one in audio])
    if not recordings:
        raise ExportError("there is no recording to check the export with")
    recordings = [samples[:length] for samples in recordings]
    features = transcriber.extract_features(recordings)
    states = encode(model, features)
    prompt = transcriber.tokens.prefix(language or "en")
    limit = min(MAX_NEW_TOKENS, model.config.max_target_positions - len(prompt))
    own = generate_tokens(model, [prompt] * len(states), encoder_hidden_states=states, max_new_tokens=limit)
    takes = getattr(FORMATS[format].load(), "TAKES", "features")
    inputs: Any = {"audio": recordings, "features": features.numpy(), "states": states.numpy()}[takes]
    given, logits = run_format(format, export_dir, list(inputs), prompt, limit, own.ids)
    end = transcriber.tokens.end_of_text
    sequences = [ids if capped else [*ids, end] for ids, capped in zip(own.ids, own.capped, strict=True)]
    references = [_reference(model, prompt, *pair) for pair in zip(sequences, states, strict=True)]
    compared = [_compare(*pair, end, tolerance(dtype)) for pair in zip(references, given, strict=True)]
    return ParityReport(
        format=format,
        dtype=dtype,
        audio=name,
        recordings=len(recordings),
        tokens=sum(map(len, sequences)),
        equal=sum(equal for equal, _ in compared),
        undecided=sum(
            len(ids) - equal for ids, (equal, difference) in zip(sequences, compared, strict=True) if not difference
        ),
        differences=[
            {"recording": number, **difference} for number, (_, difference) in enumerate(compared) if difference
        ],
        tolerance=tolerance(dtype),
        logit_difference=None if logits is None else _logit_difference(references, logits),
        logit_deviation=float(np.mean([reference.logits.std() for reference in references])),
    )


def tolerance(dtype: str) -> float:
    """Return how far logits of a number type may be off, as a share of their standard deviation.

    The bounds for 16 and 8 bits are ten times what the 16 decoder layers of ``examples/teacher``, its weights no longer
    round, showed: 0.001 in float16, 0.01 in bfloat16, 0.03 in CTranslate2's int8.
    """
    name = dtype.lower()
    if any(kind in name for kind in ("int4", "q2", "q3", "q4", "q5", "q6")):
        return 1.0
    if any(kind in name for kind in ("int8", "q8")):
        return 0.3
    if any(kind in name for kind in ("bfloat16", "bf16")):
        return 0.1
    return 0.01 if "16" in name else 0.001


def builtin_audio() -> tuple[str, list[Samples]]:
    """Return a few recordings and what they are: sentences said by eSpeak NG or, if it is missing, gliding tones."""
    rng = np.random.default_rng(0)
    try:
        return "eSpeak NG", [synthesize(draw_sentence(rng)) for _ in range(_RECORDINGS)]
    except ImportError:
        time = np.arange(48_000, dtype=np.float32) / 16_000
        glides = [200 * (number + 1) * time + 100 * time**2 for number in range(_RECORDINGS)]
        return "tones", [np.float32(0.3) * np.sin(2 * np.pi * turns, dtype=np.float32) for turns in glides]


def _reference(
    model: WhisperForConditionalGeneration, prompt: list[int], tokens: list[int], states: torch.Tensor
) -> _Reference:
    logits = forced_logits(model, prompt, tokens[:-1], states)
    allowed = logits.clone()
    allowed[:, model.generation_config.suppress_tokens or []] = -torch.inf
    allowed[0, model.generation_config.begin_suppress_tokens or []] = -torch.inf
    best = allowed.topk(2).values
    return _Reference(tokens, (best[:, 0] - best[:, 1]).tolist(), logits.numpy())


def _compare(reference: _Reference, given: list[int], end: int, share: float) -> tuple[int, dict[str, Any] | None]:
    """Return how many tokens are equal, and the difference behind them if it counts."""
    for position, (expected, margin) in enumerate(zip(reference.tokens, reference.margins, strict=True)):
        token = given[position] if position < len(given) else end
        if token != expected:
            if margin <= share * reference.logits[position].std():
                return position, None
            return position, {"position": position, "expected": expected, "given": token, "margin": margin}
    return len(reference.tokens), None


def _logit_difference(references: list[_Reference], logits: Sequence[Logits]) -> float:
    largest = 0.0
    for reference, theirs in zip(references, logits, strict=True):
        rows = min(len(reference.logits), len(theirs))
        ours, theirs = reference.logits[:rows], np.asarray(theirs[:rows], np.float32)
        finite = np.isfinite(theirs)  # what the runtime suppressed
        largest = max(largest, float(np.abs(ours - theirs)[finite].max(initial=0)))
    return largest
