"""How a conformance suite says that something does not hold."""

from __future__ import annotations


def claim(holds: bool, otherwise: str) -> None:
    """Raise AssertionError with the text `otherwise` unless the claim holds."""
    if not holds:
        raise AssertionError(otherwise)
