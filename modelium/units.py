"""Bytes, seconds and rates: reading "80GiB", "30s" and "6GB/s", and printing them."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from modelium.errors import ConfigError, did_you_mean

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
MOST_BYTES = 1 << 60
"""Sums of many sizes below it still fit in 64 bits."""
PS_PER_S = 1_000_000_000_000
"""Engines count time in whole picoseconds; every interface uses seconds as float."""

_BYTES = {
    "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB,
}  # fmt: skip
_SECONDS = {
    "ns": 1e-9,
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "min": 60.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
_NUMBER = re.compile(
    r"\s*(\+?(?:\d{1,3}(?:,\d{3})+|\d[\d_]*|(?=\.\d))(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*([A-Za-z/]*)\s*"
)


def parse_bytes(text: str | int | float) -> int:
    """Read a size: 123, "80GiB", "1.5 GB". Raises ConfigError for anything else."""
    size = _parse(text, _BYTES, "a size in bytes such as 80GiB")
    if size >= MOST_BYTES:
        raise ConfigError(f"{text!r} is more than {format_bytes(MOST_BYTES)}")
    return round(size)


def parse_bytes_per_s(text: str | int | float) -> float:
    """Read a bandwidth: 6e9 or "6GB/s"."""
    if isinstance(text, str):
        text = text.strip().removesuffix("/s")
    return _parse(text, _BYTES, "a bandwidth such as 6GB/s")


def parse_seconds(text: str | int | float) -> float:
    """Read a duration: 30, "30s", "5min", "1h", "inf" (a limit that does not exist)."""
    if text in ("inf", float("inf")):
        return float("inf")
    return _parse(text, _SECONDS, "a duration such as 30s")


def listed(names: Sequence[str], most: int = 3) -> str:
    """Print some names, of many the first: "a, b, c and 2 more"."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def counted(n: int, noun: str) -> str:
    """Print a number of things: "1 GPU", "2,500 requests"."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _parse(text: str | int | float, units: dict[str, float] | dict[str, int], wanted: str) -> float:
    if isinstance(text, bool):
        raise ConfigError(f"{text!r} is not {wanted}")
    if isinstance(text, int | float):
        if not 0 <= text <= sys.float_info.max:
            raise ConfigError(f"{text!r} is not {wanted}")
        return float(text)
    match = _NUMBER.fullmatch(text)
    if not match:
        raise ConfigError(f"{text!r} is not {wanted}")
    number, unit = match.groups()
    value = float(number.replace(",", "").replace("_", ""))
    if unit and unit not in units:
        same = [known for known in units if known.lower() == unit.lower()]
        hint = did_you_mean(same[0] if same else unit, units) or f" Units are {', '.join(units)}."
        raise ConfigError(f"{text!r} is not {wanted}: unknown unit {unit!r}.{hint}")
    value *= units[unit] if unit else 1
    if value == float("inf"):
        raise ConfigError(f"{text!r} is not {wanted}: no such number")
    return value


def ps(seconds: float) -> int:
    """Seconds as whole picoseconds, to the nearest."""
    return round(seconds * PS_PER_S)


def rfc3339(unix_s: float) -> str:
    """Print a moment of Unix time in UTC, to the millisecond: 2026-11-30T14:25:27.123Z."""
    moment = datetime.fromtimestamp(unix_s, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def format_bytes(n: float) -> str:
    """Print a size with three significant figures: 15.0 GiB."""
    for unit, size in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(n) >= size:
            return f"{n / size:.{0 if abs(n) >= 100 * size else 1}f} {unit}"
    return f"{n:.0f} B"


def format_seconds(s: float) -> str:
    """Print a duration as a person would: 12 ms, 3.4 s, 5 min, 2.5 h, 3 d."""
    size = abs(s)
    if not size:
        return "0 s"
    if size < 1e-3:
        return f"{s * 1e6:.0f} us"
    if size < 1:
        return f"{s * 1e3:.0f} ms"
    if size < 120:
        return f"{s:.1f} s"
    if size < 7200:
        return f"{s / 60:.0f} min"
    return f"{s / 3600:.1f} h" if size < 172_800 else f"{s / 86400:.1f} d"
