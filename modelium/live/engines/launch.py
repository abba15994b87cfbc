"""What an engine was started with, kept in the journal: a later executor compares.

    kept = launched_with(served, files)             # plain values for the journal
    difference(kept, served)                        # with what is configured now

An engine that is adopted after a restart may have been started with other files, flags or settings
than those that are configured by now. Most differences let it serve until another one takes its
place; some do not, because it would serve what nobody configured.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from modelium.live.settings import Served
from modelium.managers.runtimes import SHARED_SERVER
from modelium.storage.fingerprint import FilesIdentity
from modelium.units import listed

LONGEST = 40
NOTHING = "not set"


@dataclass(frozen=True, slots=True)
class Difference:
    """Between what an engine was started with and what would be started now."""

    words: str = ""
    """What differs, in one line; empty if nothing does."""
    may_serve: bool = True
    """The engine may serve until it is replaced."""


def launched_with(served: Served, files: FilesIdentity, salt: str = "") -> dict[str, Any]:
    """All that an engine of this model depends on, as plain values; it is loaded from `files`.

    Values of environment variables may be secrets: only their digests are kept, with a `salt`.
    """
    salt = salt or secrets.token_hex(8)
    settings = {key: value for key, value in served.settings.items() if key != "env"}
    own, shared = served.settings.get("env", {}), served.server.get("env", {})
    return {
        "path": str(served.path or ""),
        "files": files.as_list(),
        "gpus": served.model.gpus,
        "kv_bytes": served.model.kv_bytes,
        "can_sleep": served.model.can_sleep,
        "settings": json.loads(json.dumps(settings, default=str)),
        "env": {name: _digest(salt, str(value)) for name, value in own.items()},
        "environment": str(served.server.get("environment") or ""),
        "server_env": {name: _digest(salt, str(value)) for name, value in shared.items()},
        "salt": salt,
    }


def files_of(kept: Mapping[str, Any]) -> FilesIdentity:
    """The files that an engine was started with."""
    return FilesIdentity.from_list(kept["files"])


def difference(kept: Mapping[str, Any], served: Served) -> Difference:
    """What differs now from what was kept, but for files that changed in place.

    Files under another path that are the same ones are no difference.
    """
    now = launched_with(served, served.files, kept["salt"])
    same = bool(now["files"]) and not served.files.difference(files_of(kept))
    if now["path"] != kept["path"] and not same:
        return Difference(f"path was {kept['path']}, is {now['path'] or NOTHING}", False)
    server = list(_server(kept, now))
    said = [*server, *_own(kept, now)]
    return Difference(listed(said), not (server and served.runtime in SHARED_SERVER))


def _server(kept: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Differences of the runtime itself."""
    if kept["environment"] != now["environment"]:
        yield _changed("environment", kept["environment"] or None, now["environment"] or None)
    yield from _variables(kept["server_env"], now["server_env"])


def _own(kept: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Differences of the one engine."""
    for name in ("gpus", "kv_bytes"):
        if kept[name] != now[name]:
            yield _changed(name, kept[name], now[name])
    if now["can_sleep"] and not kept["can_sleep"]:  # what may sleep and never does is no harm
        yield "it was not started so that it can sleep"
    before, after = kept["settings"], now["settings"]
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            yield _changed(name, before.get(name), after.get(name))
    yield from _variables(kept["env"], now["env"])


def _variables(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(before.keys() | after.keys()):
        if name not in before:
            yield f"{name} in env is new"
        elif name not in after:
            yield f"{name} in env is gone"
        elif before[name] != after[name]:
            yield f"{name} in env was changed"


def _changed(name: str, before: Any, after: Any) -> str:
    if isinstance(before, dict) or isinstance(after, dict):
        return f"{name} was changed"
    return f"{name} was {_short(before)}, is {_short(after)}"


def _short(value: Any) -> str:
    if value is None:
        return NOTHING
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _digest(salt: str, value: str) -> str:
    return hashlib.sha256(f"{salt} {value}".encode()).hexdigest()[:16]
