"""What operators call."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import orjson
import pytest

from modelium.live.records.journal import Journal
from modelium.testing.scenarios import model
from tests.gateway.site import Site, visit
from tests.live.harness import QUIET_S

TWO = [model("a", 60), model("b", 60)]


def test_a_model_through_all_its_states(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        for verb, status in [
            ("load", "ready"), ("sleep?level=2", "asleep"), ("wake", "ready"),
            ("unload", "unloaded"),
        ]:  # fmt: skip
            done, told = await here.post(f"/models/a/{verb}")
            assert (done, told["status"]) == (200, status)
            assert (await here.get("/models/a"))[1]["status"] == status
        done, told = await here.post("/models/a/update")
        assert (done, told["status"], told["updated"]) == (200, "unloaded", ["a is up to date"])
        assert (await here.post("/models/a/pin"))[1]["pinned"] is True
        assert (await here.post("/models/a/load"))[0] == 200
        status, told = await here.post("/models/a/unload")
        assert (status, told["error"]["type"]) == (409, "conflict_error")
        assert (await here.post("/models/a/unpin"))[1]["pinned"] is False
        assert await here.ask("DELETE", "/models/a") == (200, {"removed": "a"})
        assert (await here.get("/models/a"))[0] == 404
        assert (await here.post("/models/a/load"))[0] == 404
        assert [row["name"] for row in (await here.get("/models"))[1]["models"]] == ["b"]

    visit(tmp_path, act, TWO)


def test_a_load_ends_with_the_connection_of_its_only_client(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        for name, stream in (("a", False), ("b", True)):
            body = {"model": name, "prompt": "x", "max_tokens": 1, "stream": stream}
            asking = asyncio.create_task(here.http.post(here.url + "/v1/completions", json=body))
            await here.until(lambda name=name: here.house.phases(name) == ["loading"])
            if stream:
                (await asking).close()
            asking.cancel()
            await here.until(lambda name=name: not here.house.phases(name))
            _, told = await here.get(f"/decisions?model={name}")
            [line] = told["decisions"]
            assert line["error"] == "cancelled: nobody waits for it any more"
            assert (await here.get(f"/models/{name}"))[1]["error"] == ""

    visit(tmp_path, act, TWO, held=True)


def test_decisions_say_why(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        for name in "ab":
            body = {"model": name, "prompt": "x", "max_tokens": 1}
            assert (await here.post("/v1/completions", body))[0] == 200
        _, told = await here.get("/decisions")
        kinds = [(line["kind"], line["model"]) for line in told["decisions"]]
        assert kinds == [("load", "b"), ("unload", "a"), ("load", "a")]
        assert all(line["reason"] for line in told["decisions"])
        _, told = await here.get("/decisions?model=a&limit=1")
        assert [line["kind"] for line in told["decisions"]] == ["unload"]
        _, told = await here.get("/usage")
        [row] = told["organizations"]
        assert (row["requests"], row["output_tokens"]) == (2, 2)
        _, told = await here.get("/status")
        assert told["models"] == 2

    visit(tmp_path, act, TWO)


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1e3", "10001", "9" * 5000, ""])
def test_odd_limits_are_refused(tmp_path: Path, limit: str) -> None:
    async def act(here: Site) -> None:
        status, told = await here.get(f"/decisions?limit={limit}")
        assert (status, told["error"]["param"]) == (400, "limit")

    visit(tmp_path, act)


def test_events_come_as_they_happen(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        async with here.http.get(f"{here.url}/events") as stream:
            assert await stream.content.readline() == b": listening\n"
            assert (await here.post("/models/a/load"))[0] == 200
            heard = {}
            while "done" not in heard:
                line = (await stream.content.readline()).decode()
                if line.startswith("event: "):
                    data = (await stream.content.readline()).decode()
                    heard[line[7:].strip()] = json.loads(data[6:])
            assert heard["decision"]["kind"] == "load"
            assert heard["done"]["error"] == ""
        news = here.house.cluster.watchers.news
        await here.until(lambda: len(news) == 1)

    visit(tmp_path, act)


def test_paths_and_methods_that_are_not_there(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        status, told = await here.get("/v1/nonsense")
        assert status == 404
        assert "openapi.json" in told["error"]["message"]
        async with here.http.get(f"{here.url}/v1/completions") as answer:
            assert (answer.status, answer.headers["Allow"]) == (405, "POST")
        assert (await here.post("/models/a/explode"))[0] in (404, 405)
        assert (await here.post("/models/a/sleep?level=3"))[0] == 400

    visit(tmp_path, act)


def test_liveness_readiness_and_health_are_different_questions(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        paths = ["/health/live", "/v2/health/live", "/ready", "/health/ready", "/v2/health/ready"]
        paths += ["/health"]

        async def asked() -> list[tuple[int, str]]:
            answers = [await here.get(path) for path in paths]
            return [(status, orjson.dumps(told).decode()) for status, told in answers]

        async def health() -> tuple[int, str]:
            status, told = await here.get("/health")
            return status, told["status"]

        journal, reception = here.house.cluster.journal, here.house.cluster.dispatcher
        assert [status for status, _ in await asked()] == [200] * 6
        assert await health() == (200, "ok")
        journal.failing = True  # the disk is full
        assert [status for status, _ in await asked()] == [200] * 6
        assert await health() == (200, "degraded")
        assert (await here.post("/models/a/load"))[0] == 200
        reception.closed = "the server is stopping"
        assert [status for status, _ in await asked()] == [200, 200, 503, 503, 503, 200]
        assert await health() == (200, "stopping")
        reception.closed = ""

    visit(tmp_path, act)


def test_who_is_served_does_not_wait_for_the_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on = threading.Event(), threading.Event()
    usual = Journal.usage

    def long(journal: Journal) -> list[dict[str, Any]]:
        """As with a month of rows."""
        reading.set()
        assert go_on.wait(QUIET_S)
        return usual(journal)

    monkeypatch.setattr(Journal, "usage", long)

    async def act(here: Site) -> None:
        asking = asyncio.create_task(here.get("/usage"))
        await here.until(reading.is_set)
        body = {"model": "a", "prompt": "x", "max_tokens": 3}
        assert (await here.post("/v1/completions", body))[0] == 200
        go_on.set()
        [used] = (await asking)[1]["organizations"]
        assert (used["requests"], used["output_tokens"]) == (1, 3)

    visit(tmp_path, act)
