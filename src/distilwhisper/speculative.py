"""Speculative decoding: a student drafts, its teacher checks, and what comes out is the teacher's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from distilwhisper.generation import (
    GeneratedTokens,
    Head,
    best_tokens,
    evaluating,
    no_speech_probs,
    output_head,
    token_limits,
)
from distilwhisper.stepping import IncrementalDecoder
from distilwhisper.token_rules import TokenRules

DRAFT_TOKENS = 8


@dataclass
class SpeculationReport:
    """How often the drafts were right.

    Attributes:
        drafted: Tokens that the assistant proposed and the teacher checked.
        accepted: Those that the teacher would have written itself.
        rounds: Decoder passes of the teacher, one for all rows of a batch.
        tokens: Tokens that came out, ends of text among them.
    """

    drafted: int = 0
    accepted: int = 0
    rounds: int = 0
    tokens: int = 0

    @property
    def acceptance_rate(self) -> float:
        """Share of the drafted tokens that were accepted; NaN before the first."""
        return self.accepted / self.drafted if self.drafted else float("nan")


@dataclass
class _Row:
    """A transcript in the making."""

    place: int  # in the batch that was given
    prefix: list[int]
    limit: int
    ids: list[int]
    logprob: float = 0.0
    ended: bool = False

    @property
    def sequence(self) -> list[int]:
        return self.prefix + self.ids


class _Model:
    """A model with what its decoder remembers of the rows."""

    def __init__(self, model: WhisperForConditionalGeneration, states: Tensor, head: Head | None) -> None:
        self.model, self.head = model, head or output_head(model)
        self.decoder = IncrementalDecoder(model, states)

    def read(self, rows: Sequence[_Row], drafts: Sequence[Sequence[int]]) -> tuple[Tensor, list[int]]:
        """Feed what each row has beyond the decoder's memory; return hidden states and how many were fed to each."""
        sequences = [row.sequence + list(draft) for row, draft in zip(rows, drafts, strict=True)]
        new = [sequence[length:] for sequence, length in zip(sequences, self.decoder.lengths, strict=True)]
        return self.decoder(new), [len(tokens) for tokens in new]


@torch.inference_mode()
def generate_speculatively(
    model: WhisperForConditionalGeneration,
    assistant: WhisperForConditionalGeneration,
    prefixes: Sequence[Sequence[int]],
    *,
    encoder_hidden_states: Tensor,
    assistant_states: Tensor,
    timestamps: bool,
    max_new_tokens: int | None = None,
    draft_tokens: int = DRAFT_TOKENS,
    no_speech_token: int | None = None,
    head: Head | None = None,
    assistant_head: Head | None = None,
    report: SpeculationReport | None = None,
) -> GeneratedTokens:
    """Continue decoder prefixes with the greedy tokens of ``model``, several a pass where the assistant guesses them.

    The assistant writes up to ``draft_tokens`` ahead; the model reads them in one pass and keeps those that it would
    have written itself, and one more of its own (Leviathan et al. 2022, arXiv 2211.17192, at temperature 0; paper,
    section 3.4). Both follow the same rules for suppressed tokens and timestamps. Each row of a batch advances on its
    own.

    Args:
        model: The teacher.
        assistant: The student, with the same vocabulary.
        prefixes: Ids that open each transcript.
        encoder_hidden_states: The teacher's, ``[batch, positions, d_model]``.
        assistant_states: The student's; the very same tensor where the encoder is the same.
        timestamps: Whether timestamp rules apply.
        max_new_tokens: Length limit; never more than the decoders have positions for.
        draft_tokens: Tokens that the assistant writes ahead.
        no_speech_token: Id whose probability at the start of the transcript is wanted.
        head: What `output_head` returned for the model.
        assistant_head: The same for the assistant.
        report: Counts drafts and what came of them.

    Raises:
        ValueError: If a prefix leaves no room.
    """
    limits = token_limits(model, prefixes, max_new_tokens)
    all_rows = [_Row(place, list(prefix), limits[place], []) for place, prefix in enumerate(prefixes)]
    report, no_speech, rows = report or SpeculationReport(), None, all_rows
    rules = TokenRules(model, timestamps=timestamps)
    with evaluating(model), evaluating(assistant):
        checker = _Model(model, encoder_hidden_states, head)
        drafter = _Model(assistant, assistant_states, assistant_head)
        while rows:
            drafts = _draft(drafter, rows, rules, draft_tokens)
            hidden, read = checker.read(rows, drafts)
            if no_speech is None:
                no_speech = no_speech_probs(model, prefixes, hidden, checker.head, no_speech_token)
            _check(checker.head, rows, drafts, hidden, read, rules=rules, report=report)
            for side in (checker, drafter):  # take back what was rejected
                side.decoder.truncate([len(row.sequence) - 1 for row in rows])
            going = [place for place, row in enumerate(rows) if not row.ended and len(row.ids) < row.limit]
            if going and len(going) < len(rows):
                checker.decoder.select(going)
                drafter.decoder.select(going)
            rows = [rows[place] for place in going]
    return GeneratedTokens(
        [row.ids for row in all_rows],
        [row.logprob for row in all_rows],
        [not row.ended for row in all_rows],
        no_speech,
    )


def _draft(drafter: _Model, rows: Sequence[_Row], rules: TokenRules, draft_tokens: int) -> list[list[int]]:
    """Return what the assistant writes next; the end of text ends a draft, and the limit leaves room for one more."""
    drafts: list[list[int]] = [[] for _ in rows]
    rooms = [min(draft_tokens, row.limit - len(row.ids) - 1) for row in rows]
    going = [place for place, room in enumerate(rooms) if room > 0]
    while going:
        hidden, read = drafter.read(rows, drafts)
        last = hidden[going, [read[place] - 1 for place in going]]
        scores = rules(drafter.head(last).float(), [rows[place].ids + drafts[place] for place in going])
        for place, token in zip(going, scores.argmax(-1).tolist(), strict=True):
            drafts[place].append(token)
        going = [place for place in going if len(drafts[place]) < rooms[place] and drafts[place][-1] != rules.end]
    return drafts


def _check(
    head: Head,
    rows: Sequence[_Row],
    drafts: Sequence[Sequence[int]],
    hidden: Tensor,
    read: Sequence[int],
    *,
    rules: TokenRules,
    report: SpeculationReport,
) -> None:
    """Append to each row what the model writes: the accepted part of its draft, and one token more."""
    places, positions, histories = [], [], []
    for place, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
        for count in range(len(draft) + 1):
            places.append(place)
            positions.append(read[place] - 1 - len(draft) + count)
            histories.append([*row.ids, *draft[:count]])
    scores = rules(head(hidden[places, positions]).float(), histories)
    written = iter(zip(*best_tokens(scores, places), strict=True))
    report.rounds += 1
    for row, draft in zip(rows, drafts, strict=True):
        report.drafted += len(draft)
        agrees = True
        for proposed in [*draft, None]:
            token, logprob = next(written)
            if not agrees:
                continue
            row.logprob += logprob
            agrees = token == proposed
            row.ended = token == rules.end
            report.tokens, report.accepted = report.tokens + 1, report.accepted + agrees
            if row.ended:
                agrees = False
            else:
                row.ids.append(token)
