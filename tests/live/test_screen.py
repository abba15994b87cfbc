"""The live view fits the terminal, however small."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from modelium.cli.live.live_view import LEAST, Screen, gpu_lines, sentence

GPU = {
    "id": "gpu0", "lost": "", "memory_bytes": 100, "booked_bytes": 50, "utilisation": 0.5,
    "instances": [],
}  # fmt: skip
STATUS: dict[str, Any] = {
    "pretend_gpus": True, "policy": "ilp:every_s=15", "gpus": [GPU] * 4, "models": 12,
    "up_s": 69.0, "request_rate_per_s": 5.3, "running": 2, "waiting": 7, "stopping": "",
    "journal": {"failures": 0},
}  # fmt: skip


def test_an_engine_that_does_not_end_is_seen() -> None:
    copy = {"model": "a", "phase": "leaving", "gpus": ["gpu0"], "running": 0, "stage": ""}
    for stuck in (False, True):
        [line] = gpu_lines({"gpus": [{**GPU, "instances": [{**copy, "stuck": stuck}]}]})
        assert line.plain.endswith("a ✕ does not end" if stuck else "a ✕")


def test_a_watch_that_breaks_is_seen() -> None:
    line = sentence("watch-fault", {"watch": "gpus", "why": "OSError: no such device"})
    assert line is not None
    assert line.plain.split() == ["watch", "gpus", "OSError:", "no", "such", "device"]


@pytest.mark.parametrize("size", [(120, 40), (80, 24), (60, 12), (40, 8)])
def test_it_fills_the_terminal_and_no_more(size: tuple[int, int]) -> None:
    width, height = size
    screen = Screen("http://127.0.0.1:8080")
    for number in range(100):
        screen.hear("lost", {"instance": f"a#{number}", "why": "its engine was killed " * 9})
    console = Console(width=width, height=height)
    with console.capture() as captured:
        console.print(screen.draw(STATUS, *console.size))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= width
    events = sum(" lost " in line for line in lines)
    assert len(lines) == height - 1 or (events == LEAST and len(lines) >= height)
    assert any("waiting 7" in line for line in lines)
    assert "a#99" in next(line for line in lines if " lost " in line)
