"""Values that a copy got at its last hit, for rules whose values age."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from modelium.core import ClusterState, Instance

T = TypeVar("T")


class AtLastHit(Generic[T]):
    """Remembers for each copy the value that it had when a request was last sent to it.

    Policies do not hear of hits. But `value` changes only when the policy evicts, so it is enough
    to look, just before that, which copies have served more requests than at the last look: those
    were hit under the value that holds until now.
    """

    def __init__(self, value: Callable[[ClusterState, Instance], T]) -> None:
        self._value = value
        self._seen: dict[str, tuple[int, T]] = {}

    def get(self, state: ClusterState, copy: Instance) -> T:
        """Return the value of `copy` at its last hit, or when it was loaded."""
        seen = self._seen.get(copy.id)
        if seen is not None and seen[0] == copy.served:
            return seen[1]
        return self._value(state, copy)

    def settle(self, state: ClusterState) -> None:
        """Write down all values; call this just before they change."""
        self._seen = {
            name: (copy.served, self.get(state, copy)) for name, copy in state.instances.items()
        }
