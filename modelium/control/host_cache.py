"""A node's RAM as a tier of weights: sleeping copies are pinned there, the rest is an LRU cache."""

from __future__ import annotations

from collections import OrderedDict


class HostRam:
    """Bytes of one node's RAM; pinned bytes are never evicted, cached ones as room is needed."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.pinned_bytes = 0
        self.cached_bytes = 0
        self._cached: OrderedDict[str, int] = OrderedDict()

    def __contains__(self, model: str) -> bool:
        return model in self._cached

    @property
    def free_bytes(self) -> int:
        """What can be pinned; cached copies make way."""
        return self.capacity_bytes - self.pinned_bytes

    def cache(self, model: str, size_bytes: int) -> None:
        """Keep a copy of `model`'s weights, or refresh its age; too large a copy is not kept."""
        if model in self._cached:
            self._cached.move_to_end(model)
        elif size_bytes <= self.free_bytes:
            self._cached[model] = size_bytes
            self.cached_bytes += size_bytes
            self._evict()

    def drop(self, model: str) -> None:
        """Forget the cached copy, if there is one."""
        self.cached_bytes -= self._cached.pop(model, 0)

    def pin(self, size_bytes: int) -> None:
        """Take room for a sleeping copy (a negative size gives it back)."""
        self.pinned_bytes += size_bytes
        self._evict()

    def resize(self, capacity_bytes: int) -> None:
        """There is more or less RAM than before; what is pinned stays."""
        self.capacity_bytes = capacity_bytes
        self._evict()

    def clear(self) -> None:
        """Lose everything that is cached (the node went down)."""
        self._cached.clear()
        self.cached_bytes = 0

    def copy(self) -> HostRam:
        """An independent copy with the same contents."""
        twin = HostRam(self.capacity_bytes)
        twin.pinned_bytes, twin.cached_bytes = self.pinned_bytes, self.cached_bytes
        twin._cached = self._cached.copy()
        return twin

    def _evict(self) -> None:
        while self._cached and self.cached_bytes > self.free_bytes:
            self.cached_bytes -= self._cached.popitem(last=False)[1]
