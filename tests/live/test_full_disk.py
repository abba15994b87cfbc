"""The journal's disk is full: loads are refused in words, ready models go on answering."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelium.core import Decision, Phase
from modelium.live.cluster import LiveCluster
from modelium.live.engines.backoff import Patience
from modelium.live.records.journal import JournalError
from modelium.live.requests.interface import RefusedError
from modelium.testing.scenarios import model
from tests.live.harness import QUIET_S
from tests.live.house import engines_of, house

SMALL = [model("a", 20), model("b", 20)]


@contextmanager
def full(cluster: LiveCluster) -> Iterator[None]:
    """No page of the journal is free, as on a full disk."""
    db = cluster.journal._db
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {pages}")
    with contextlib.suppress(JournalError):
        while True:  # what is left of the last page
            cluster.journal.decided(Decision(0.0, "load", "b", "", (), "it fills the disk"))
    yield
    db.execute(f"PRAGMA max_page_count = {pages + 100_000}")


def test_a_full_disk_refuses_loads_and_nothing_else(tmp_path: Path) -> None:
    async def run() -> None:
        async with house(tmp_path, SMALL, patience=Patience(tries=1)) as here:
            await here.ask("a")
            with full(here.cluster):
                for _ in range(5):
                    assert await here.ask("a")
                with pytest.raises(RefusedError, match=r"the journal cannot be used: .*full") as no:
                    async with asyncio.timeout(QUIET_S):
                        await here.ask("b")
                assert no.value.status == 503
                assert here.cluster.journal.failing
                assert here.phases("b") == []
            assert await here.ask("b")  # it was not the model's fault: at once
            assert here.phases("a") == here.phases("b") == [Phase.READY.value]
            assert not here.cluster.journal.failing
            assert here.cluster.failures.of("b") is None

    asyncio.run(run())
    assert engines_of(tmp_path) == []
