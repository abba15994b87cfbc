"""The live cluster keeps the same contract as the simulated one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from modelium.core import Gpu, Model, Node
from modelium.testing.cluster import SCRIPTS, Make
from tests.live.harness import LiveHarness


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[LiveHarness] = []

    def make(models: Sequence[Model], gpus: Sequence[Gpu], nodes: Sequence[Node]) -> LiveHarness:
        made.append(LiveHarness(tmp_path / str(len(made)), models, gpus, nodes))
        return made[-1]

    yield make
    for harness in made:
        harness.close()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__.strip("_"))
def test_it_passes_the_conformance_suite(script: object, make: Make) -> None:
    script(make)  # type: ignore[operator]
