"""Fitting the form of StepTime: two coefficient sets, for decode-only and for mixed steps.

Coefficients are not negative (no term can make a step faster) and minimise the relative error, so
that a step of 10 ms counts as much as one of 200 ms. Decode-only steps bend with the batch size at
every power of two, which costs a simulation nothing; mixed steps have one hinge, the best of a
list. Fitting all steps with one set is the main risk: a decode-only step would inherit the dearer
attention of mixed ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from modelium.errors import ProfileError
from modelium.sim.spec import StepTime

Floats = NDArray[np.float64]

MIXED_HINGES = (64, 96, 128, 192, 256, 320, 384, 448, 512, 640, 768)
NODES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Batch sizes at which decode-only steps bend."""
LEAST_STEPS = 20
MIXED = (
    "mixed_lo", "mixed_hi", "mixed_decode", "mixed_prefill", "mixed_kv", "mixed_ctx", "mixed_sq",
)  # fmt: skip
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


def fit(steps: Steps, overhead_s: float = 0.0) -> Fitted:
    """Fit both coefficient sets to measured steps; `overhead_s` is added to each step's constant.

    Raises ProfileError when either set has too few steps to fit.
    """
    decode, mixed = steps.only(steps.prefills == 0), steps.only(steps.prefills > 0)
    for name, part in (("decode-only", decode), ("mixed", mixed)):
        if len(part.seconds) < LEAST_STEPS:
            raise ProfileError(f"{len(part.seconds)} {name} steps: at least {LEAST_STEPS} needed")
    (c, lo, hi, kv), hinge_d, bends, error_d = _decode(decode)
    hinge_m, m, error_m = _mixed(mixed)
    step = StepTime(
        decode_c=_round(c + overhead_s),
        decode_lo=_round(lo),
        decode_hi=_round(hi),
        decode_hinge=hinge_d,
        decode_kv=_round(kv),
        decode_bends=bends,
        mixed_c=_round(m[0] + overhead_s),
        mixed_hinge=hinge_m,
        **{name: _round(x) for name, x in zip(MIXED, m[1:], strict=True)},
    )
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


def _mixed_terms(s: Steps, hinge: int) -> list[Floats]:
    tokens = s.decode + s.prefill_tokens
    over = np.maximum(tokens - hinge, 0)
    one = np.ones_like(tokens)
    # With the same S in every step its term could not be told from the constant.
    prefills = s.prefills if np.ptp(s.prefills) else 0 * one
    return [one, tokens - over, over, s.decode, prefills, s.kv, s.ctx, s.sq]


def _mixed(steps: Steps) -> tuple[int, Floats, FitError]:
    fits = []
    for hinge in MIXED_HINGES:
        columns = np.stack(_mixed_terms(steps, hinge), axis=1)
        fits.append((hinge, *_relative_nnls(columns, steps.seconds)))
    hinge, coefficients, estimate = min(
        fits, key=lambda f: float(np.sum((f[2] / steps.seconds - 1) ** 2))
    )
    return hinge, coefficients, _error(estimate, steps.seconds)


Bends = tuple[tuple[int, float], ...]


def _decode(steps: Steps) -> tuple[list[float], int, Bends, FitError]:
    """A base that is linear in D between nodes, and one coefficient for K."""
    most = steps.decode.max()
    nodes = np.array([node for node in NODES if node < most] + [int(most)])
    hats = [np.interp(steps.decode, nodes, row) for row in np.eye(len(nodes))]
    values, _ = _relative_nnls(np.stack([*hats, steps.kv], axis=1), steps.seconds)
    base, kv = np.maximum.accumulate(values[:-1]), float(values[-1])
    slopes = np.diff(base) / np.diff(nodes)
    changes = zip(nodes[2:-1], np.diff(slopes)[1:], strict=True)
    bends = tuple((int(at), _round(change)) for at, change in changes)
    line = [float(base[0] - slopes[0] * nodes[0]), float(slopes[0]), float(slopes[1]), kv]
    estimate = np.interp(steps.decode, nodes, base) + kv * steps.kv
    return line, int(nodes[1]), bends, _error(estimate, steps.seconds)


def _relative_nnls(columns: Floats, seconds: Floats) -> tuple[Floats, Floats]:
    scale = np.maximum(np.abs(columns).max(axis=0), 1e-30)
    weighted = columns / scale / seconds[:, None]
    # The triangle of a QR factorisation has the same solution as the tall matrix, far sooner.
    orthogonal, triangle = np.linalg.qr(weighted)
    coefficients = nnls(triangle, orthogonal.sum(axis=0))[0] / scale
    return coefficients, columns @ coefficients


def _error(estimate: Floats, seconds: Floats) -> FitError:
    relative = np.abs(estimate / seconds - 1)
    unexplained = np.sum((estimate - seconds) ** 2) / np.sum((seconds - seconds.mean()) ** 2)
    return FitError(
        float(1 - unexplained),
        float(relative.mean()),
        float(np.quantile(relative, 0.95)),
        len(seconds),
    )
