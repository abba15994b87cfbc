"""Least recently used: the default that everyone knows."""

from __future__ import annotations

from typing import Any

from modelium.policies.toolkit.on_demand import OnDemand, last_use


class Lru(OnDemand):
    """Evict the idle copy whose last request was sent longest ago.

    Source: the classical rule; last use counts from the start of a request, as in FaasCache's
    simulator (Fuerst and Sharma, ASPLOS'21).
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(evict=last_use, **options)
