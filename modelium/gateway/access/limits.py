"""Rate limits per organization: two token buckets, one of requests, one of tokens.

A bucket holds a minute's worth and fills all the time. Tokens are charged when they are known, at
the end of a request: whoever has overdrawn waits until the bucket is above zero again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from modelium.gateway.errors import ApiError

MOST_BUCKETS = 10_000
"""Organizations may be named by clients: there are never more than this, the fullest go."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What one organization may ask for; None: no limit."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


@dataclass(slots=True)
class _Bucket:
    size: float
    level: float
    at_s: float

    def fill(self, now_s: float) -> float:
        self.level = min(self.size, self.level + (now_s - self.at_s) * self.size / 60)
        self.at_s = now_s
        return self.level

    def wait_s(self, least: float) -> float:
        """Seconds until it holds `least`."""
        return max(0.0, (least - self.level) * 60 / self.size)


class Limits:
    """The buckets of all organizations."""

    def __init__(
        self, clock: Callable[[], float], usual: Rate, special: Mapping[str, Rate] | None = None
    ) -> None:
        self._clock = clock
        self._usual, self._special = usual, dict(special or {})
        self._buckets: dict[tuple[str, str], _Bucket] = {}

    def change(self, usual: Rate, special: Mapping[str, Rate]) -> None:
        """Other rates from now on; what was used of a minute stays used."""
        self._usual, self._special = usual, dict(special)

    def admit(self, organization: str) -> None:
        """Count a request. Raises ApiError (429) with the time after which one would be let in."""
        rate, now_s = self._rate(organization), self._clock()
        tokens = self._bucket(organization, "tokens", rate.tokens_per_minute, now_s)
        if tokens is not None and tokens.fill(now_s) <= 0:
            raise _over("tokens", rate.tokens_per_minute, tokens.wait_s(1.0))
        requests = self._bucket(organization, "requests", rate.requests_per_minute, now_s)
        if requests is not None:
            if requests.fill(now_s) < 1:
                raise _over("requests", rate.requests_per_minute, requests.wait_s(1.0))
            requests.level -= 1

    def used(self, organization: str, tokens: int) -> None:
        """Charge the tokens of a request that is over."""
        rate, now_s = self._rate(organization), self._clock()
        bucket = self._bucket(organization, "tokens", rate.tokens_per_minute, now_s)
        if bucket is not None:
            bucket.fill(now_s)
            bucket.level -= tokens

    def _rate(self, organization: str) -> Rate:
        return self._special.get(organization, self._usual)

    def _bucket(
        self, organization: str, what: str, size: float | None, now_s: float
    ) -> _Bucket | None:
        if size is None:
            return None
        key = (organization, what)
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= MOST_BUCKETS:
                self._forget()
            bucket = self._buckets[key] = _Bucket(size, size, now_s)
        elif bucket.size != size:
            bucket.fill(now_s)
            bucket.level += size - bucket.size
            bucket.size = size
        return bucket

    def _forget(self) -> None:
        """Make room: a full bucket is as good as a new one, and nearly full ones lose little.

        Half of the room, so that this is done rarely.
        """
        now_s = self._clock()
        share = {key: bucket.fill(now_s) / bucket.size for key, bucket in self._buckets.items()}
        emptiest = sorted((key for key in share if share[key] < 1), key=share.__getitem__)
        self._buckets = {key: self._buckets[key] for key in emptiest[: MOST_BUCKETS // 2]}


def _over(what: str, limit: float | None, wait_s: float) -> ApiError:
    message = f"more than {limit:g} {what} per minute"
    return ApiError(429, message, code="rate_limit_exceeded", retry_after_s=wait_s)
