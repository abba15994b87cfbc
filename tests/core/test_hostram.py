"""A node's RAM: sleepers are pinned, the cache is least recently used and makes way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from modelium.control.host_cache import HostRam


def test_the_cache_forgets_the_oldest_first() -> None:
    ram = HostRam(30)
    for name in "abc":
        ram.cache(name, 10)
    ram.cache("a", 10)  # refreshed
    ram.cache("d", 10)
    assert [name in ram for name in "abcd"] == [True, False, True, True]


def test_pinned_bytes_push_cached_ones_out_and_are_never_pushed() -> None:
    ram = HostRam(30)
    ram.cache("a", 20)
    ram.pin(15)
    assert "a" not in ram
    ram.cache("b", 20)
    assert "b" not in ram
    assert ram.free_bytes == 15
    ram.pin(-15)
    ram.cache("b", 20)
    assert "b" in ram


def test_a_copy_is_independent() -> None:
    ram = HostRam(30)
    ram.cache("a", 10)
    twin = ram.copy()
    twin.drop("a")
    twin.pin(30)
    assert "a" in ram
    assert (ram.free_bytes, ram.cached_bytes) == (30, 10)
    assert (twin.free_bytes, twin.cached_bytes) == (0, 0)


class Use(RuleBasedStateMachine):
    """Any use of the RAM."""

    def __init__(self) -> None:
        super().__init__()
        self.ram = HostRam(50)
        self.pins: list[int] = []
        self.sizes: dict[str, int] = {}

    @rule(name=st.sampled_from("abcdef"), size=st.integers(0, 60))
    def cache(self, name: str, size: int) -> None:
        size = self.sizes.setdefault(name, size)
        there = name in self.ram
        self.ram.cache(name, size)
        assert (name in self.ram) == (there or size <= self.ram.free_bytes)

    @rule(size=st.integers(0, 50))
    def pin(self, size: int) -> None:
        if size <= self.ram.free_bytes:
            self.pins.append(size)
            self.ram.pin(size)

    @precondition(lambda self: self.pins)
    @rule()
    def unpin(self) -> None:
        self.ram.pin(-self.pins.pop())

    @rule(name=st.sampled_from("abcdef"))
    def drop(self, name: str) -> None:
        self.ram.drop(name)
        assert name not in self.ram

    @rule()
    def clear(self) -> None:
        self.ram.clear()

    @invariant()
    def the_books_are_right(self) -> None:
        cached = sum(size for name, size in self.sizes.items() if name in self.ram)
        assert self.ram.cached_bytes == cached
        assert self.ram.pinned_bytes == sum(self.pins)
        assert cached + sum(self.pins) <= 50


TestUse = Use.TestCase


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), max_size=20))
def test_a_cached_copy_is_counted_once(asked: list[tuple[str, int]]) -> None:
    ram = HostRam(1000)
    first: dict[str, int] = {}
    for name, size in asked:
        ram.cache(name, first.setdefault(name, size))
    assert ram.cached_bytes == sum(first.values())
