"""Memory is granted to the last byte, in order of coming."""

from __future__ import annotations

from modelium.control.memory_ledger import MemoryLedger
from modelium.core import Gpu


def test_what_fits_exactly_is_granted_and_one_byte_more_waits() -> None:
    room = MemoryLedger({"g0": Gpu("g0", "n0", 10)})
    granted: list[str] = []
    room.take(("g0",), 4, lambda: granted.append("first"))
    room.take(("g0",), 7, lambda: granted.append("too large"))
    assert granted == ["first"]
    room.give(("g0",), 1)
    assert granted == ["first", "too large"]
    assert room.held == {"g0": 10}
