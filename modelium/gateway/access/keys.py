"""API keys: who may call, for which organization, with which scopes. Only hashes are kept.

A key is 256 random bits, so that one fast hash of it is enough (slow hashes guard guessable
passwords). Keys are compared by their hash, in a table: no secret is compared byte by byte.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from modelium.errors import ConfigError
from modelium.storage.durable import write_durably

PREFIX = "mk-"
LONGEST_NAME = 128


@dataclass(frozen=True, slots=True)
class Key:
    """One key, without its secret."""

    name: str
    organization: str
    scopes: tuple[str, ...]
    hash: str
    created: float
    """Unix time."""


class Keys:
    """The keys in a file; it is read again when it changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int] | None = None
        self._by_hash: dict[str, Key] = {}
        self.read()

    def find(self, secret: str) -> Key | None:
        """The key with this secret."""
        self.read()
        return self._by_hash.get(_hash(secret))

    def all(self) -> list[Key]:
        """All keys, oldest first."""
        self.read()
        return sorted(self._by_hash.values(), key=lambda key: key.created)

    def make(self, name: str, organization: str, scopes: tuple[str, ...]) -> str:
        """Add a key and return its secret, which is told this once. Raises ConfigError."""
        for what, given in (("key", name), ("organization", organization)):
            if len(given) > LONGEST_NAME or not given.isprintable() or given != given.strip():
                raise ConfigError(
                    f"{given!r:.60} is no name of a {what}: at most {LONGEST_NAME} printable"
                    " characters, none of them blank at an end"
                )
        if not name:
            raise ConfigError("a key needs a name, for `modelium key revoke NAME`")
        if any(key.name == name for key in self.all()):
            raise ConfigError(f"{self.path}: there is a key called {name!r} already")
        secret = PREFIX + secrets.token_urlsafe(32)
        key = Key(name, organization, scopes, _hash(secret), time.time())
        self._write([*self.all(), key])
        return secret

    def revoke(self, name: str) -> None:
        """Remove a key; a running server hears of it at the next call. Raises ConfigError."""
        keys = self.all()
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            known = ", ".join(key.name for key in keys) or "none"
            raise ConfigError(f"{self.path}: no key called {name!r}; there are {known}")
        self._write(left)

    def read(self) -> None:
        """Read the file if it has changed. Raises ConfigError if it is not a file of keys."""
        try:
            stat = self.path.stat()
            seen = (stat.st_mtime_ns, stat.st_size)
            if seen == self._seen:
                return
            rows = json.loads(self.path.read_text(encoding="utf-8"))
            keys = [Key(**{**row, "scopes": tuple(row["scopes"])}) for row in rows]
        except (FileNotFoundError, NotADirectoryError):
            seen, keys = (0, 0), []
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{self.path}: not a file of API keys: {error}") from None
        self._seen, self._by_hash = seen, {key.hash: key for key in keys}

    def _write(self, keys: list[Key]) -> None:
        text = json.dumps([asdict(key) for key in keys], indent=2)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(self.path, text + "\n")
        except OSError as error:
            why = error.strerror or error
            raise ConfigError(f"{self.path}: keys cannot be written: {why}") from None
        self.read()


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()
