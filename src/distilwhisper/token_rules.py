"""Which tokens a Whisper may write next: suppressed tokens and the grammar of timestamps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration


class TokenRules:
    """Forbids tokens, given what each row has written so far.

    The rules are those of Transformers' ``WhisperTimeStampLogitsProcessor`` and of its processors for suppressed
    tokens. Those take one batch of sequences of equal length; these take any histories, as speculative decoding needs
    them: one for each position that is checked.

    Args:
        model: A Whisper, whose generation config names suppressed tokens.
        timestamps: Whether timestamps are written.

    Raises:
        ValueError: If timestamps are asked for and the generation config does not say where they begin.
    """

    def __init__(self, model: WhisperForConditionalGeneration, *, timestamps: bool) -> None:
        config = model.generation_config
        self.end = end_of_text(model)
        self.at_start = list(config.begin_suppress_tokens or ())
        self.everywhere = list(config.suppress_tokens or ())
        self.timestamps = timestamps
        if timestamps:
            if getattr(config, "no_timestamps_token_id", None) is None:
                raise ValueError("timestamps need no_timestamps_token_id in the model's generation config")
            self.everywhere.append(config.no_timestamps_token_id)
            self.first = config.no_timestamps_token_id + 1
            self.initial_limit: int | None = getattr(config, "max_initial_timestamp_index", None)

    def __call__(self, scores: Tensor, histories: Sequence[Sequence[int]]) -> Tensor:
        """Forbid tokens by a score of minus infinity, in place.

        Args:
            scores: Logits in float32, ``[rows, vocabulary]``.
            histories: What each row has written, without its prefix.
        """
        if self.everywhere:
            scores[:, self.everywhere] = -torch.inf
        for row, history in zip(scores, histories, strict=True):
            if not history and self.at_start:
                row[self.at_start] = -torch.inf
            if self.timestamps:
                self._forbid(row, history)
        if self.timestamps:
            # A timestamp is due when all of them together are likelier than any other token.
            due = scores[:, self.first :].logsumexp(-1) > scores[:, : self.first].amax(-1)
            scores[:, : self.first].masked_fill_(due[:, None], -torch.inf)
        return scores

    def _forbid(self, row: Tensor, history: Sequence[int]) -> None:
        first = self.first
        if not history:  # a transcript opens with a timestamp
            row[:first] = -torch.inf
            if self.initial_limit is not None:
                row[first + self.initial_limit + 1 :] = -torch.inf
            return
        after_one = history[-1] >= first
        after_two = after_one and (len(history) < 2 or history[-2] >= first)
        if after_two:  # they come in pairs, or one at the start
            row[first:] = -torch.inf
        elif after_one:
            row[: self.end] = -torch.inf
        if last := next((token for token in reversed(history) if token >= first), None):
            # Time does not run backwards, and only the second of a pair may repeat the first.
            row[first : last if after_one and not after_two else last + 1] = -torch.inf


def end_of_text(model: WhisperForConditionalGeneration) -> int:
    """Return the id that ends a transcript."""
    end = model.generation_config.eos_token_id
    return int(end[0] if isinstance(end, list) else end)
