"""`modelium.client.replay` against a real gateway: what is sent, when, and what became of it."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelium.client.client import ServerError
from modelium.client.replay import Play, Tally, play
from modelium.gateway.access.keys import Keys
from modelium.gateway.access.limits import Rate
from modelium.live.requests.dispatcher import DispatchSettings as Rules
from modelium.testing.scenarios import model
from modelium.traces import Labels, Trace
from tests.gateway.site import ENDLESS, HALTED, TOKENS, Site, visit
from tests.live.house import frozen
from tests.live.idle import Idle

TWO = [model("a", 20), model("b", 20)]
Row = tuple[float, str, int, int]


def trace(*rows: Row) -> Trace:
    """Arrival in s, model, prompt and output tokens of each request."""
    arrivals, models, prompts, outputs = zip(*rows, strict=True)
    return Trace(
        np.array(arrivals, np.float64),
        Labels.of(models),
        np.array(prompts, np.int32),
        np.array(outputs, np.int32),
    )


async def journal(here: Site, columns: str) -> list[tuple[Any, ...]]:
    """These columns of every request, in the order of arrival, once all are over."""
    await here.until(lambda: not here.running)
    there = here.house.cluster.journal
    there.write_rows()
    return there._db.execute(f"SELECT {columns} FROM requests ORDER BY arrival_s").fetchall()


@pytest.mark.parametrize("chat", [False, True])
def test_each_request_is_what_the_trace_says(tmp_path: Path, chat: bool) -> None:
    rows: list[Row] = [(0.0, "a", 7, 3), (0.05, "b", 1, 9), (0.1, "a", 300, 1), (0.15, "a", 2, 20)]

    async def act(here: Site) -> None:
        seen: list[int] = []
        tally = await play(
            trace(*rows), Play(here.url, chat=chat), lambda tally: seen.append(tally.completed)
        )
        assert tally == Tally(sent=4, completed=4)
        assert seen == [1, 2, 3, 4]
        asked = await journal(here, "model, prompt_tokens, output_tokens")
        assert sorted(asked) == sorted(row[1:] for row in rows)

    visit(tmp_path, act, TWO)


def test_nothing_is_sent_before_its_time_or_held_for_earlier_answers(tmp_path: Path) -> None:
    rows: list[Row] = [(10.0, "a", 5, 100), (20.0, "a", 5, 1), (30.0, "a", 5, 1)]

    async def act(here: Site) -> None:
        assert (await here.post("/models/a/load"))[0] == 200
        begun_s = here.house.cluster.now_s()
        with frozen(here.engine):  # nobody is answered before all have come
            playing = asyncio.create_task(play(trace(*rows), Play(here.url, speed=100.0)))
            await here.until(lambda: here.running == 3)
        assert (await playing).completed == 3
        told = await journal(here, "arrival_s")
        for (arrival_s,), row in zip(told, rows, strict=True):
            assert arrival_s >= begun_s + row[0] / 100

    visit(tmp_path, act, **HALTED)


def test_no_more_than_wanted_and_only_what_the_server_has(tmp_path: Path) -> None:
    rows: list[Row] = [(0.0, "a", 1, 1), (0.0, "nobody", 1, 1), (0.0, "b", 1, 1), (9e9, "a", 1, 1)]

    async def act(here: Site) -> None:
        tally = await play(trace(*rows), Play(here.url, most=3))
        assert tally == Tally(sent=2, completed=2, skipped=1)
        assert tally.sentence() == (
            "2 sent: 2 answered, 0 refused, 0 failed, 1 skipped (no such model)"
        )
        with pytest.raises(ServerError, match=r"none of the trace's models: x; it serves a, b$"):
            await play(trace((0.0, "x", 1, 1)), Play(here.url))

    visit(tmp_path, act, TWO)


def test_refusals_are_told_from_failures(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        tally = await play(trace((0.0, "a", 1, 1), (0.0, "a", 1, 1)), Play(here.url))
        assert (tally.refused, tally.failed, tally.completed) == (2, 0, 0)
        assert all(error.startswith("503: ") for error in tally.errors)
        assert sum(tally.errors.values()) == 2

    visit(tmp_path, act, policy=Idle(), dispatch=Rules(max_wait_s=0.05))


def test_a_limit_is_a_refusal(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        tally = await play(trace(*[(0.0, "a", 1, 1)] * 3), Play(here.url))
        assert (tally.completed, tally.refused) == (1, 2)
        assert all(error.startswith("429: ") for error in tally.errors)

    visit(tmp_path, act, rate=Rate(requests_per_minute=1), clock=lambda: 0.0)


def test_what_the_engine_refuses_has_failed(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        tally = await play(trace((0.0, "a", 1, 1_000_000)), Play(here.url))
        assert (tally.failed, tally.refused) == (1, 0)
        [error] = tally.errors
        assert error.startswith("400: ")

    visit(tmp_path, act)


def test_a_stream_that_breaks_has_failed(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        assert (await here.post("/models/a/load"))[0] == 200
        playing = asyncio.create_task(
            play(trace((0.0, "a", 1, 1), (0.1, "a", 1, TOKENS)), Play(here.url))
        )
        # The second is streamed; its engine dies when the answer has begun.
        seats = here.house.cluster.dispatcher.seats
        await here.until(
            lambda: any(
                seat.first_s is not None and seat.request.output_tokens == TOKENS for seat in seats
            )
        )
        assert here.engine.process is not None
        os.kill(here.engine.process.pid, signal.SIGKILL)
        tally = await playing
        assert (tally.sent, tally.completed, tally.failed) == (2, 1, 1)
        assert tally.as_dict()["errors"] == {"an error within a stream": 1}

    visit(tmp_path, act, settings=ENDLESS)


def test_a_key_is_sent_and_a_wrong_one_is_told(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    user = keys.make("u", "acme", ("user",))

    async def act(here: Site) -> None:
        one = trace((0.0, "a", 1, 1))
        assert (await play(one, Play(here.url, key=user))).completed == 1
        assert await journal(here, "organization") == [("acme",)]
        with pytest.raises(ServerError, match="the server answered 401: unknown API key"):
            await play(one, Play(here.url, key="mk-wrong"))

    visit(tmp_path, act, keys=keys)


def test_no_server_is_told() -> None:
    with pytest.raises(ServerError, match="no answer when asked for the models"):
        asyncio.run(play(trace((0.0, "a", 1, 1)), Play("http://127.0.0.1:9")))
