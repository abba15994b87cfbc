"""Fitting the form of StepTime: two coefficient sets, one hinge each, errors relative.

Coefficients are not negative (no term can make a step faster) and minimise the relative error, so
that a step of 10 ms counts as much as one of 200 ms; the hinge is the best of a list. Fitting all
steps with one set is the main risk: with one set a decode-only step inherits the dearer attention
of mixed steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from modelium.errors import ProfileError
from modelium.sim.spec import StepTime

Floats = NDArray[np.float64]

DECODE_HINGES = (8, 16, 32, 48, 64, 96, 128, 160, 192)
MIXED_HINGES = (64, 96, 128, 192, 256, 320, 384, 448, 512, 640, 768)
BEND_NODES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DIGITS = 6
"""Significant digits that a coefficient keeps."""


@dataclass(frozen=True, slots=True)
class Steps:
    """Measured steps as columns; the letters are those of `modelium.sim.spec.StepTime`."""

    decode: Floats
    """D, decoding sequences."""
    kv: Floats
    """K, sum of their contexts."""
    prefill_tokens: Floats
    """sum of c"""
    prefills: Floats
    """S, sequences that prefill; 0 marks a decode-only step."""
    ctx: Floats
    """sum of c*x"""
    sq: Floats
    """sum of c*c"""
    seconds: Floats

    def only(self, keep: NDArray[np.bool_]) -> Steps:
        """The steps where `keep` holds."""
        return Steps(*(getattr(self, name)[keep] for name in self.__slots__))

    @staticmethod
    def join(parts: Sequence[Steps]) -> Steps:
        """All steps of several sets."""
        return Steps(*(np.concatenate([getattr(p, n) for p in parts]) for n in Steps.__slots__))


@dataclass(frozen=True, slots=True)
class FitError:
    """How far a fit is from what it was fitted to; relative errors as fractions."""

    r2: float
    mape: float
    p95: float
    steps: int


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fit and its error per coefficient set."""

    step: StepTime
    decode: FitError
    mixed: FitError


def fit(steps: Steps, overhead_s: float = 0.0, *, bends: bool = False) -> Fitted:
    """Fit both coefficient sets to measured steps; `overhead_s` is added to each step's constant.

    With `bends`, decode-only steps follow the batch size through every power of two, which a
    mixture of experts needs: its experts join one by one. Raises ProfileError when either set has
    too few steps to fit.
    """
    decode, mixed = steps.only(steps.prefills == 0), steps.only(steps.prefills > 0)
    for name, part in (("decode-only", decode), ("mixed", mixed)):
        if len(part.seconds) < 20:
            raise ProfileError(f"{len(part.seconds)} {name} steps: a fit needs at least 20")
    hinge_d, d, error_d = _best(decode, _decode_terms, DECODE_HINGES)
    more: tuple[tuple[int, float], ...] = ()
    if bends:
        hinge_d, d, more, error_d = _bent(decode)
    hinge_m, m, error_m = _best(mixed, _mixed_terms, MIXED_HINGES)
    step = StepTime(
        _round(d[0] + overhead_s), *map(_round, d[1:3]), hinge_d, _round(d[3]),
        _round(m[0] + overhead_s), *map(_round, m[1:3]), hinge_m, *map(_round, m[3:]),
        decode_bends=more,
    )  # fmt: skip
    return Fitted(step, error_d, error_m)


def as_json(fitted: Fitted) -> dict[str, object]:
    """The step's coefficients that are not zero, and the errors, as plain values."""
    step = {k: v for k, v in asdict(fitted.step).items() if v}
    errors = {"decode": _plain(fitted.decode), "mixed": _plain(fitted.mixed)}
    return {"step": step, "error": errors}


def _plain(error: FitError) -> dict[str, float]:
    return {k: round(v, 4) for k, v in asdict(error).items()}


def _round(x: float) -> float:
    return float(f"{x:.{DIGITS}g}")


def _decode_terms(s: Steps, hinge: int) -> list[Floats]:
    over = np.maximum(s.decode - hinge, 0)
    return [np.ones_like(s.kv), s.decode - over, over, s.kv]


def _mixed_terms(s: Steps, hinge: int) -> list[Floats]:
    tokens = s.decode + s.prefill_tokens
    over = np.maximum(tokens - hinge, 0)
    one = np.ones_like(tokens)
    # With the same S in every step its term could not be told from the constant.
    prefills = s.prefills if np.ptp(s.prefills) else 0 * one
    return [one, tokens - over, over, s.decode, prefills, s.kv, s.ctx, s.sq]


def _best(
    steps: Steps, terms: Callable[[Steps, int], list[Floats]], hinges: Sequence[int]
) -> tuple[int, Floats, FitError]:
    fits = []
    for hinge in hinges:
        columns = np.stack(terms(steps, hinge), axis=1)
        fits.append((hinge, *_relative_nnls(columns, steps.seconds)))
    hinge, coefficients, estimate = min(
        fits, key=lambda f: float(np.sum((f[2] / steps.seconds - 1) ** 2))
    )
    return hinge, coefficients, _error(estimate, steps.seconds)


def _bent(decode: Steps) -> tuple[int, list[float], tuple[tuple[int, float], ...], FitError]:
    """Base time piecewise linear in D, one node per power of two, and one coefficient for K."""
    nodes = np.array(BEND_NODES, dtype=float)
    hats = [np.interp(decode.decode, nodes, row) for row in np.eye(len(nodes))]
    values, estimate = _relative_nnls(np.stack([*hats, decode.kv], axis=1), decode.seconds)
    slopes = np.diff(values[:-1]) / np.diff(nodes)
    bends = zip(BEND_NODES[2:-1], np.diff(slopes)[1:], strict=True)
    base = [values[0] - slopes[0] * nodes[0], slopes[0], slopes[1], values[-1]]
    more = tuple((at, _round(change)) for at, change in bends)
    return BEND_NODES[1], base, more, _error(estimate, decode.seconds)


def _relative_nnls(columns: Floats, seconds: Floats) -> tuple[Floats, Floats]:
    scale = np.maximum(np.abs(columns).max(axis=0), 1e-30)
    weighted = columns / scale / seconds[:, None]
    coefficients = nnls(weighted, np.ones_like(seconds))[0] / scale
    return coefficients, columns @ coefficients


def _error(estimate: Floats, seconds: Floats) -> FitError:
    relative = np.abs(estimate / seconds - 1)
    unexplained = np.sum((estimate - seconds) ** 2) / np.sum((seconds - seconds.mean()) ** 2)
    return FitError(
        float(1 - unexplained), float(relative.mean()), float(np.quantile(relative, 0.95)), len(seconds)
    )
