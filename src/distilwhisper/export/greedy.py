"""Greedy search for runtimes that give logits: the tokens that Transformers chooses from the same numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Decode = Callable[[list[int], int], npt.NDArray[Any]]
"""From ids and the number of ids before them to the logits behind the last, ``[vocabulary]``."""


@dataclass(frozen=True)
class GreedyRules:
    """What a generation config says of greedy search.

    Attributes:
        end_of_text: Id that ends a transcript.
        suppressed: Ids that never occur.
        begin_suppressed: Ids that do not occur first.
    """

    end_of_text: int
    suppressed: list[int]
    begin_suppressed: list[int]

    @classmethod
    def load(cls, directory: Path) -> GreedyRules:
        """Read them from the ``generation_config.json`` of a directory."""
        config = json.loads((directory / "generation_config.json").read_text(encoding="utf-8"))
        end = config["eos_token_id"]
        return cls(
            end_of_text=end[0] if isinstance(end, list) else end,
            suppressed=config.get("suppress_tokens") or [],
            begin_suppressed=config.get("begin_suppress_tokens") or [],
        )


def greedy(decode: Decode, prompt: list[int], max_new_tokens: int, rules: GreedyRules) -> list[int]:
    """Return the ids that follow a prompt, up to the end of text or the length limit, without the former.

    Args:
        decode: The runtime, which remembers the ids of earlier calls.
        prompt: Ids that open the transcript.
        max_new_tokens: Length limit.
        rules: Suppressed ids and the end of text.
    """
    ids: list[int] = []
    for step in range(max_new_tokens):
        scores = decode(ids[-1:] or prompt, len(prompt) + step - 1 if step else 0)
        scores[rules.suppressed] = -np.inf
        if not ids:
            scores[rules.begin_suppressed] = -np.inf
        ids.append(int(scores.argmax()))
        if ids[-1] == rules.end_of_text:
            return ids[:-1]
    return ids


def forced_logits(decode: Decode, prompt: list[int], tokens: list[int]) -> npt.NDArray[Any]:
    """Return the logits behind a prompt and each of the tokens that follow it, ``[tokens + 1, vocabulary]``.

    Args:
        decode: As for `greedy`.
        prompt: Ids that open the transcript.
        tokens: Its ids.
    """
    steps = [decode(prompt, 0)]
    steps += [decode([token], len(prompt) + past) for past, token in enumerate(tokens)]
    return np.stack(steps)
