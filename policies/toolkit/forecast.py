"""What users will ask for next, guessed from what they asked for so far."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

from modelium.core import ClusterState


class Forecast(Protocol):
    """Guesses the demand of one model."""

    def rate_per_s(self, state: ClusterState, model: str, horizon_s: float) -> float:
        """Mean arrival rate to expect over the next `horizon_s`.

        May remember what it saw; asked often, at times that never go back.
        """


class _Seen(NamedTuple):
    at_s: float
    arrivals: int
    base_per_s: float
    weight: float


class EwmaForecast:
    """A burst that fades into a base rate, both exponentially weighted averages.

    The burst is `Demand.request_rate_per_s`, whose time constant (about a minute) belongs to the
    cluster. The base is the same average over `base_s`, kept here and corrected for its start, so
    that an hour of history is not mistaken for a day of silence. A burst above the base (or a lull
    below it) is expected to fade with time constant `fade_s`; over a horizon H that leaves
    `base + (burst - base) * fade/H * (1 - exp(-H/fade))`, the mean of a mean-reverting process.
    """

    def __init__(self, base_s: float = 7200.0, fade_s: float = 600.0) -> None:
        self.base_s = base_s
        self.fade_s = fade_s
        self._seen: dict[str, _Seen] = {}

    def rate_per_s(self, state: ClusterState, model: str, horizon_s: float) -> float:
        """Mean arrival rate to expect over the next `horizon_s`."""
        base = self._base_per_s(state, model)
        burst = state.demand[model].request_rate_per_s
        fading = self.fade_s / horizon_s * -math.expm1(-horizon_s / self.fade_s)
        return base + (burst - base) * fading

    def _base_per_s(self, state: ClusterState, model: str) -> float:
        now_s, demand = state.now_s, state.demand[model]
        seen = self._seen.get(model) or _Seen(now_s, 0, 0.0, 0.0)
        passed_s = now_s - seen.at_s
        if passed_s > 0:
            keep = math.exp(-passed_s / self.base_s)
            rate = (demand.arrivals - seen.arrivals) / passed_s
            base = keep * seen.base_per_s + (1 - keep) * rate
            seen = _Seen(now_s, demand.arrivals, base, keep * seen.weight + 1 - keep)
            self._seen[model] = seen
        elif model not in self._seen:
            self._seen[model] = _Seen(now_s, demand.arrivals, 0.0, 0.0)
        return seen.base_per_s / seen.weight if seen.weight else demand.request_rate_per_s
