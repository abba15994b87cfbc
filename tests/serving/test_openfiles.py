"""The limit of open files."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from modelium.gateway.access.connections import OTHER_FILES, Bounds
from modelium.serving.open_files import FEW_OPEN, MOST_OPEN, raise_open_files

FILES = resource.RLIMIT_NOFILE


@pytest.fixture
def hard() -> Iterator[int]:
    soft, hard = resource.getrlimit(FILES)
    yield hard
    resource.setrlimit(FILES, (soft, hard))


def test_the_soft_limit_becomes_the_hard_one(hard: int) -> None:
    resource.setrlimit(FILES, (512, hard))
    notes = raise_open_files()
    most = MOST_OPEN if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN)
    assert resource.getrlimit(FILES) == (most, hard)
    assert bool(notes) == (most < FEW_OPEN)


def test_a_low_hard_limit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (1024, 1024))
    [note] = raise_open_files()
    assert note.startswith(
        "the limit of open files is 1024, so there are at most 412 clients at a time"
    )


@pytest.mark.parametrize("files", [8, 64, 256, 1024, 4096, 1 << 20])
@pytest.mark.parametrize("protocols", [1, 2])
def test_all_clients_and_their_engines_connections_may_be_open(
    monkeypatch: pytest.MonkeyPatch, files: int, protocols: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (files, files))
    bounds = Bounds.of_this_process(protocols)
    assert 1 <= bounds.silent <= bounds.connections
    left = files - 2 * protocols * bounds.connections
    assert left >= min(OTHER_FILES, files // 2)
