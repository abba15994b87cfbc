"""Reading the catalogue's data files, and finding a name in them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from modelium.errors import ProfileError, did_you_mean

T = TypeVar("T")


def read(file: str) -> dict[str, dict[str, Any]]:
    """The entries of one of the catalogue's JSON files."""
    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
    entries: dict[str, dict[str, Any]] = json.loads(text)
    return entries


def simplify(name: str) -> str:
    """Lower case, words joined by single dashes."""
    return "-".join(name.lower().replace("_", " ").replace("-", " ").split())


def find(what: str, name: str, entries: Mapping[str, T], known: Mapping[str, T]) -> T:
    """The entry called `name` among `known`: `entries` and their aliases.

    Raises ProfileError with the nearest name, or else all of `entries`.
    """
    if name in known:
        return known[name]
    raise not_found(what, name, known, entries)


def not_found(what: str, name: str, known: Iterable[str], entries: Iterable[str]) -> ProfileError:
    """What to say of a name that is not there: the nearest of `known`, or else all `entries`."""
    hint = did_you_mean(name, known) or f" Known are {', '.join(entries)}."
    return ProfileError(f"no {what} called {name!r} in the catalogue.{hint}")
