"""What /metrics says of a live cluster, against what happened and what the journal says of it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from modelium.core import Decision
from modelium.live.engines import health
from modelium.live.engines.backoff import Patience
from modelium.live.records.journal import JournalError
from modelium.live.records.telemetry import Telemetry
from modelium.live.requests.dispatcher import DispatchSettings as Rules
from modelium.live.requests.interface import RefusedError, Request
from modelium.metrics import ModeliumMetrics
from modelium.testing.scenarios import model
from tests.gateway.paced import paced
from tests.gateway.site import ENDLESS, TOKENS, Site, visit
from tests.live.harness import INSTANT
from tests.live.idle import Idle, loaded, operations
from tests.live.test_full_disk import full

TWO = [model("a", 60), model("b", 60)]
"""One GPU has room for one of them."""
BODY = {"model": "a", "prompt": "x y", "max_tokens": 5}


class Page:
    """What Prometheus would fetch."""

    def __init__(self, here: Site) -> None:
        # For its rates all happens in one second, however long the test takes.
        self.metrics, self.here = ModeliumMetrics(lambda: 1000.0), here
        Telemetry(here.house.cluster, self.metrics)

    def values(self, name: str) -> dict[tuple[str, ...], float]:
        """By the labels' values, in the order of their names."""
        text = self.metrics.exposition()[0].decode()
        return {
            tuple(value for label, value in sorted(one.labels.items()) if label != "le"): one.value
            for family in text_string_to_metric_families(text)
            for one in family.samples
            if one.name == f"modelium_{name}"
        }

    def value(self, name: str, *labels: str) -> float:
        """0 where there is no such series."""
        return self.values(name).get(labels, 0.0)

    async def looked(self) -> None:
        """Wait until the GPUs have been looked at once more."""
        before = len(self.here.house.said("gpus"))
        await self.here.until(lambda: len(self.here.house.said("gpus")) > before)


def see(
    folder: Path, act: Callable[[Site, Page], Awaitable[None]], *given: Any, **more: Any
) -> None:
    """Run a test's coroutine at a new site that is measured."""

    async def run(here: Site) -> None:
        await act(here, Page(here))

    visit(folder, run, *given, **more)


async def begun(answer: aiohttp.ClientResponse) -> None:
    """Wait for a stream's next token; comments before the first say that its model is loaded."""
    while not (await answer.content.readline()).startswith(b"data:"):
        pass


def test_answers_are_measured_as_the_journal_has_them(tmp_path: Path) -> None:
    async def act(here: Site, page: Page) -> None:
        now_s = here.house.cluster.now_s
        assert (await here.post("/v1/completions", BODY))[0] == 200
        async with paced(here) as front:
            front.let()
            async with here.http.post(
                f"{here.url}/v1/completions", json={**BODY, "max_tokens": 50, "stream": True}
            ) as answer:
                await begun(answer)
                first_seen_s = now_s()
                for _ in range(48):
                    front.let()
                    await begun(answer)
                least_s = now_s() - first_seen_s
                front.let()
                await answer.read()
        await here.until(lambda: here.running == 0)
        journal = here.house.cluster.journal
        journal.write_rows()
        rows = journal._db.execute(
            "SELECT arrival_s, first_token_s, finish_s, cold FROM requests ORDER BY arrival_s"
        ).fetchall()
        assert page.values("requests_total") == {("a", "emulated", "success"): 2}
        assert page.value("prompt_tokens_total", "a") == 4
        assert page.value("output_tokens_total", "a") == 55
        firsts = sum(first_s - arrival_s for arrival_s, first_s, _, _ in rows)
        assert page.value("time_to_first_token_seconds_sum", "a") == pytest.approx(firsts, abs=1e-3)
        wholes = sum(finish_s - arrival_s for arrival_s, _, finish_s, _ in rows)
        told_s = page.value("request_latency_seconds_sum", "a", "emulated")
        assert told_s == pytest.approx(wholes, abs=1e-3)
        # Only what was streamed shows the time between its tokens.
        assert page.value("time_per_output_token_seconds_count", "a") == 1
        gaps_s = 49 * page.value("time_per_output_token_seconds_sum", "a")
        _, first_s, finish_s, _ = rows[1]
        assert least_s - 1e-6 < gaps_s < finish_s - first_s + 1e-6
        # The first one waited for the load, the second for nobody.
        assert [row[3] for row in rows] == ["disk", ""]
        assert page.values("cold_starts_total") == {("a", "disk"): 1}
        assert page.value("queue_wait_seconds_count", "a") == 2
        assert page.value("queue_wait_seconds_sum", "a") < firsts
        assert page.value("model_qps", "n0g0", "a", "emulated") > 0

    see(tmp_path, act)


def test_a_client_that_leaves_has_no_first_token_and_took_no_tokens(tmp_path: Path) -> None:
    async def act(here: Site, page: Page) -> None:
        body = {**BODY, "max_tokens": TOKENS, "stream": True}
        async with here.http.post(f"{here.url}/v1/completions", json=body) as answer:
            await begun(answer)
        await here.until(lambda: page.values("requests_total"))
        assert page.values("requests_total") == {("a", "emulated", "cancelled"): 1}
        assert page.values("time_to_first_token_seconds_count") == {}
        assert page.values("output_tokens_total") == {}
        assert page.value("request_latency_seconds_count", "a", "emulated") == 1

    see(tmp_path, act, settings=ENDLESS)


def test_refusals_are_counted_by_model_and_status(tmp_path: Path) -> None:
    async def act(here: Site, page: Page) -> None:
        for name in ("nobody", "somebody", "a"):
            status, _ = await here.post("/v1/completions", {**BODY, "model": name})
            assert status == (503 if name == "a" else 404)
        # Names that clients make up are no labels.
        assert page.values("requests_rejected_total") == {("unknown", "404"): 2, ("a", "503"): 1}
        assert page.values("requests_total") == {}

    see(tmp_path, act, policy=Idle(), dispatch=Rules(max_wait_s=0.05))


def test_a_request_that_outlives_its_model_begins_no_series_anew(tmp_path: Path) -> None:
    async def act(here: Site, page: Page) -> None:
        seat = await here.house.cluster.dispatcher.seat(Request("a"))
        cluster = here.house.cluster
        cluster.kill(cluster.state.copy("a#1"), "its process has ended")
        await here.until(lambda: not cluster.state.instances)
        assert (await here.ask("DELETE", "/models/a"))[0] == 200
        await page.looked()
        seat.lost("its process has ended")
        assert page.values("requests_total") == {}

    see(tmp_path, act)


def test_loads_unloads_wakes_and_decisions_are_counted(tmp_path: Path) -> None:
    async def act(here: Site, page: Page) -> None:
        before = len(here.house.said("decide"))
        for name in "ab":
            assert (await here.post("/v1/completions", {**BODY, "model": name}))[0] == 200
        assert (await here.post("/models/b/sleep"))[0] == 200
        assert (await here.post("/models/b/wake"))[0] == 200
        await here.until(lambda: page.values("wake_seconds_count"))
        assert page.value("model_loads_total", "emulated", "success") == 2
        assert page.value("model_unloads_total", "emulated", "success") == 1
        assert page.value("wake_seconds_count", "emulated", "total") == 1
        loads = {stage: count for (_, stage), count in page.values("load_seconds_count").items()}
        assert loads["total"] == loads["process"] == 2
        decided = [line.kind for _, line in here.house.cluster.decisions]
        told = page.values("orchestration_decisions_total")
        by_kind = {kind: sum(n for (one, _), n in told.items() if one == kind) for kind in decided}
        assert by_kind == {kind: decided.count(kind) for kind in decided}
        assert sum(told.values()) == len(decided)
        heard = [about["heard"] for about in here.house.said("decide")[before:]]
        counts = {event: n for (event,), n in page.values("decide_seconds_count").items()}
        assert counts == {event: heard.count(event) for event in heard}

    see(tmp_path, act, TWO)


def test_a_load_that_fails_is_a_failure(tmp_path: Path) -> None:
    async def act(here: Site, page: Page) -> None:
        assert (await here.post("/v1/completions", BODY))[0] == 503
        await here.until(lambda: page.value("model_loads_total", "emulated", "failure"))
        assert page.value("model_loads_total", "emulated", "failure") == 1
        assert page.value("model_loads_total", "emulated", "success") == 0
        assert page.values("requests_rejected_total") == {("a", "503"): 1}

    broken = {**INSTANT, "fault": "fail_start"}
    see(tmp_path, act, settings=broken, faults=True, patience=Patience(tries=1))


def test_a_lost_engine_is_a_restart_and_its_request_is_lost(tmp_path: Path) -> None:
    async def act(here: Site, page: Page) -> None:
        body = {**BODY, "max_tokens": TOKENS, "stream": True}
        async with here.http.post(f"{here.url}/v1/completions", json=body) as answer:
            await begun(answer)
            assert here.engine.process is not None
            os.kill(here.engine.process.pid, signal.SIGKILL)
            await answer.read()
        await here.until(lambda: page.value("engine_restarts_total", "emulated"))
        assert page.values("engine_restarts_total") == {("emulated",): 1}
        assert page.values("requests_total") == {("a", "emulated", "lost"): 1}

    see(tmp_path, act, settings=ENDLESS)


def test_what_is_true_now_is_shown_and_ends_with_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "GPUS_EVERY_S", 0.05)

    async def act(here: Site, page: Page) -> None:
        cluster = here.house.cluster
        await loaded(here.house, "a")
        waiting = asyncio.create_task(here.house.ask("b"))
        await here.until(lambda: here.waiting("b"))
        await page.looked()
        reading = cluster.memory.readings[0]
        assert page.values("gpu_up") == {("n0g0",): 1}
        assert page.value("gpu_memory_total_gb", "n0g0") == reading.total_bytes / 1e9
        assert page.value("gpu_memory_used_gb", "n0g0") == reading.used_bytes / 1e9
        [copy] = cluster.state.instances_of("a")
        assert page.values("model_memory_bytes") == {("n0g0", "a"): copy.bytes_per_gpu}
        assert page.values("models_loaded") == {("emulated",): 1}
        assert page.value("queue_length", "b") == 1
        await operations(here.house).remove("b")
        with pytest.raises(RefusedError):
            await waiting
        assert (await here.post("/models/a/unload"))[0] == 200
        await page.looked()
        assert page.values("model_memory_bytes") == {}
        assert page.values("models_loaded") == {("emulated",): 0}
        assert "b" not in {labels[0] for labels in page.values("queue_length")}
        # "b" is gone, and so is what was counted of it.
        assert not [key for key in page.values("requests_rejected_total") if key[0] == "b"]

    see(tmp_path, act, TWO, policy=Idle())


def test_writes_that_the_disk_refuses_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "GPUS_EVERY_S", 0.05)

    async def act(here: Site, page: Page) -> None:
        journal = here.house.cluster.journal
        with full(here.house.cluster):
            for _ in range(2):
                with pytest.raises(JournalError, match="full"):
                    journal.decided(Decision(0.0, "load", "a", "", (), "the test"))
            await page.looked()
        failures = journal.failures
        assert failures >= 3  # `full` itself has had the first
        assert page.value("journal_failures_total") == failures

    see(tmp_path, act)
