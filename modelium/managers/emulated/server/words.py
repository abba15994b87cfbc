"""Made-up text and vectors: the same prompt and seed always give the same."""

from __future__ import annotations

import math
from itertools import product
from zlib import crc32

_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "st", "tr")
_VOWELS = ("a", "e", "i", "o")
_ENDS = (
    "",
    "n",
    "r",
    "s",
    "l",
    "la",
    "ri",
    "mo",
    "ne",
    "to",
    "da",
    "ku",
    "ven",
    "sol",
    "tim",
    "ra",
)
WORDS = tuple(f" {''.join(parts)}".encode() for parts in product(_ONSETS, _VOWELS, _ENDS))
"""1024 pseudo-words, each with a space in front: one is one token."""

# Knuth, MMIX: a full period of 2^64, good in its high bits, which are the ones used.
_FACTOR, _STEP, _MASK, _SHIFT = 6364136223846793005, 1442695040888963407, (1 << 64) - 1, 54


class Words:
    """An endless stream of words that belongs to a prompt and a seed."""

    __slots__ = ("_state",)

    def __init__(self, prompt: bytes, seed: int) -> None:
        self._state = (crc32(prompt) << 32 | crc32(b"%d" % seed, len(prompt))) & _MASK
        self.next()

    def next(self) -> bytes:
        """The next word, as bytes that need no escaping in JSON."""
        self._state = state = (self._state * _FACTOR + _STEP) & _MASK
        return WORDS[state >> _SHIFT]

    def vector(self, size: int) -> list[float]:
        """`size` numbers on the unit sphere, as an embedding would be."""
        numbers = []
        for _ in range(size):
            self.next()
            numbers.append((self._state >> 11) / (1 << 52) - 1.0)
        length = math.sqrt(sum(x * x for x in numbers)) or 1.0
        return [x / length for x in numbers]


def count_tokens(text: str) -> int:
    """How many tokens the emulation takes `text` for: one a word, at least one."""
    return max(1, len(text.split()))
