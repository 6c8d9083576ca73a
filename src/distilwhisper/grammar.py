"""A small English grammar: the text of the synthetic corpus, and ways for a transcript of it to be wrong.

About 170 words in nine sentence patterns make some hundred million sentences of 4 to 12 words, written with the
casing and punctuation of Whisper. No two words sound alike, so every sentence can be heard exactly.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable

import numpy as np

SLOTS: dict[str, tuple[str, ...]] = {
    "adjective": (
        *("old", "young", "green", "yellow", "heavy", "little", "quiet", "broken"),
        *("golden", "strange", "famous", "empty", "happy", "wooden", "silver", "dirty"),
    ),
    "person": (
        *("captain", "doctor", "farmer", "teacher", "painter", "soldier", "sister", "neighbour"),
        *("driver", "children", "woman", "father", "lawyer", "king"),
    ),
    "name": ("Anna", "Peter", "Maria", "David", "Emma", "Oliver", "Sarah", "Thomas"),
    "thing": (
        *("letter", "window", "bicycle", "table", "garden", "picture", "basket", "ladder"),
        *("camera", "lamp", "blanket", "engine", "piano", "umbrella", "kitchen", "mirror"),
    ),
    "things": (
        *("boxes", "apples", "books", "horses", "bottles", "candles", "chairs", "stones"),
        *("oranges", "keys", "tickets", "coins", "potatoes", "dogs"),
    ),
    "number": ("two", "three", "four", "five", "six", "seven", "nine", "ten", "eleven", "twelve", "twenty", "fifty"),
    "did": (
        *("carried", "found", "opened", "painted", "sold", "washed", "followed", "counted"),
        *("remembered", "dropped", "stole", "repaired", "noticed", "bought"),
    ),
    "do": ("carry", "find", "open", "paint", "clean", "finish", "move", "borrow", "follow", "forget"),
    "moved": ("walked", "travelled", "hurried", "returned", "waited", "danced"),
    "place": (
        *("to the harbour", "under the bridge", "behind the church", "near the river"),
        *("in the forest", "at the market", "beside the station", "across the mountain"),
        *("on the island", "from the village", "inside the castle", "along the street"),
    ),
    "time": (
        *("yesterday", "this morning", "every Monday", "last summer", "before dinner"),
        *("after the storm", "at midnight", "in December", "on Friday", "again"),
    ),
    "said": ("said", "believed", "heard", "promised"),
    "who": ("She", "He", "They", "Nobody"),
}
PATTERNS = (
    "The {adjective} {person} {did} {number} {adjective} {things} {place}.",
    "{name} {did} the {adjective} {thing} {time}.",
    "{name} and {name} {moved} {place} {time}.",
    "Why did the {person} {do} the {adjective} {thing} {place}?",
    "There were {number} {adjective} {things} {place}.",
    "{who} {said} that the {thing} was {adjective}.",
    "{name} wants to {do} the {thing} {time}.",
    "{who} {moved} {place} with {number} {things}.",
    "Please {do} the {adjective} {thing} and the {number} {things}.",
)

_HOLD_OUT = 20
Draw = Callable[[], str]


def draw_sentence(rng: np.random.Generator) -> str:
    """Draw a sentence; no word stands twice in one."""
    pattern = PATTERNS[rng.integers(len(PATTERNS))]
    used: set[str] = set()

    def fill(match: re.Match[str]) -> str:
        choices = [word for word in SLOTS[match[1]] if word not in used]
        used.add(choice := choices[rng.integers(len(choices))])
        return choice

    return re.sub(r"\{(\w+)\}", fill, pattern)


def partition(sentence: str) -> str:
    """Return to which part of the language a sentence belongs, whatever the seed: train, validation or test.

    One sentence in twenty is kept for tests and one for validation, so that no model trained on one corpus is
    tested on a sentence that it has seen in another.
    """
    return {0: "test", 1: "validation"}.get(zlib.crc32(sentence.encode()) % _HOLD_OUT, "train")


def wrong_transcript(sentence: str, rng: np.random.Generator) -> str:
    """Return a transcript that is clearly wrong: of another sentence, or with words lost or replaced.

    A third of the words is touched at least, so the word error rate is far above any useful threshold.
    """
    words = sentence.split()
    count = max(2, round(len(words) * rng.uniform(0.34, 0.6)))
    places = set(rng.choice(len(words), size=count, replace=False).tolist())
    kind = rng.integers(3)
    if kind == 0:
        return _differing(sentence, lambda: draw_sentence(rng))
    if kind == 1:
        return " ".join(word for place, word in enumerate(words) if place not in places)
    spoken = sorted({word for choices in SLOTS.values() for choice in choices for word in choice.split()})

    def other(word: str) -> str:
        return _differing(word.strip(".?").lower(), lambda: spoken[rng.integers(len(spoken))])

    return " ".join(other(word) if place in places else word for place, word in enumerate(words))


def _differing(text: str, draw: Draw) -> str:
    while (other := draw()) == text:
        pass
    return other
