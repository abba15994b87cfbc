"""How long prompts and answers are: a lognormal law, or pairs drawn from a file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from modelium.errors import TraceError
from modelium.traces.columns import INT32_MAX
from modelium.traces.random_streams import stream
from modelium.traces.trace import Labels, Trace

Ints = NDArray[np.int32]
_LIMITS = (
    ("prompt_mean", 1e-3, 1e9), ("prompt_cv", 0, 100), ("prompt_limit", 1, INT32_MAX),
    ("output_mean", 1e-3, 1e9), ("output_cv", 0, 100), ("output_limit", 1, INT32_MAX),
)  # fmt: skip


class Lengths(Protocol):
    """Where the token counts of generated requests come from."""

    def draw(self, n: int, seed: int, model: str) -> tuple[Ints, Ints]:
        """Prompt and output tokens of `n` requests of `model`; each model has its own stream."""


@dataclass(frozen=True)
class Lognormal:
    """Independent lognormal prompts and outputs, rounded, at least 1 and at most the limits.

    Means are those before the limits cut; `cv` is standard deviation over mean.
    """

    prompt_mean: float = 700.0
    output_mean: float = 200.0
    prompt_cv: float = 1.0
    output_cv: float = 1.0
    prompt_limit: int = 3072
    output_limit: int = 1024

    def __post_init__(self) -> None:
        """Raises TraceError for figures that no lognormal has."""
        for name, low, high in _LIMITS:
            if not low <= (value := getattr(self, name)) <= high:
                raise TraceError(f"{name} is {value:g}, expected {low:g} to {high:g}")

    def draw(self, n: int, seed: int, model: str) -> tuple[Ints, Ints]:
        """Draw from streams of their own: the outputs do not depend on how prompts are drawn."""
        prompt = _lognormal(n, self.prompt_mean, self.prompt_cv, stream(seed, "prompt", model))
        output = _lognormal(n, self.output_mean, self.output_cv, stream(seed, "output", model))
        return _whole(prompt, self.prompt_limit), _whole(output, self.output_limit)

    def __str__(self) -> str:
        return (
            f"lognormal, prompt mean {self.prompt_mean:g} cv {self.prompt_cv:g}, "
            f"output mean {self.output_mean:g} cv {self.output_cv:g}, "
            f"at most {self.prompt_limit} and {self.output_limit} tokens"
        )


@dataclass(frozen=True)
class Drawn:
    """Pairs of prompt and output tokens drawn with replacement from observed pairs."""

    prompt_tokens: Ints
    output_tokens: Ints
    source: str = "observed pairs"

    @classmethod
    def of(cls, trace: Trace, source: str) -> Drawn:
        """The pairs of a trace, or of a list of lengths that was read as one."""
        return cls(trace.prompt_tokens, trace.output_tokens, source)

    def draw(self, n: int, seed: int, model: str) -> tuple[Ints, Ints]:
        """Draw whole pairs, so that long prompts keep the answers that they had."""
        pick = stream(seed, "pairs", model).integers(0, len(self.prompt_tokens), n)
        return self.prompt_tokens[pick], self.output_tokens[pick]

    def __str__(self) -> str:
        return f"drawn from the {len(self.prompt_tokens):,} pairs of {self.source}"


def draw_lengths(lengths: Lengths, model: Labels, seed: int) -> tuple[Ints, Ints]:
    """Prompt and output tokens for a column of models, each model from its own stream."""
    prompt, output = np.empty(len(model), np.int32), np.empty(len(model), np.int32)
    order = np.argsort(model.codes, kind="stable")
    rows_of = np.split(order, np.cumsum(model.counts())[:-1])
    for name, rows in zip(model.names, rows_of, strict=True):
        prompt[rows], output[rows] = lengths.draw(len(rows), seed, name)
    return prompt, output


def _lognormal(n: int, mean: float, cv: float, rng: np.random.Generator) -> NDArray[np.float64]:
    variance = math.log1p(cv**2)
    return rng.lognormal(math.log(mean) - variance / 2, math.sqrt(variance), n)


def _whole(tokens: NDArray[np.float64], limit: int) -> Ints:
    return np.clip(np.rint(tokens), 1, limit).astype(np.int32)
