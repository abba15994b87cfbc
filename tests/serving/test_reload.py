"""The configuration, read again while the server runs: as a whole, or not at all."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import yaml

from modelium.cli import invoke
from modelium.gateway.access.keys import Keys
from modelium.live.engines import host_memory
from modelium.live.engines.host_memory import HostMemory
from modelium.repository import ModelRepository
from modelium.serving import Server, config_watch, managers, order, serving
from modelium.serving.hardware import hardware
from tests.gateway.site import run_as_served
from tests.gateway.test_access import certificates
from tests.live import tiny
from tests.live.harness import QUIET_S
from tests.live.nvml import GIB
from tests.serving.test_starting import kept_port

SMALL = {"catalogue": "qwen2.5-0.5b"}
GATEWAY: dict[str, Any] = {"port": 18080}
CONFIG: dict[str, Any] = {
    "cluster": {"gpus": "2xl4"},
    "emulated": {"enabled": True, "speed": 1000},
    "metrics": {"enabled": False},
    "models": {"a": SMALL, "b": SMALL},
    "policy": "lru",
}


@dataclass
class Place:
    """A server, and the file that it reads."""

    server: Server
    file: Path
    http: aiohttp.ClientSession
    news: list[tuple[str, Any]]

    def save(self, **sections: Any) -> None:
        text = yaml.safe_dump({**CONFIG, "gateway": GATEWAY, "live": self.live, **sections})
        self.file.write_text(text)

    @property
    def live(self) -> dict[str, Any]:
        return {"folder": str(self.file.parent / "live")}

    async def call(self, method: str, path: str, body: Any = None, **more: Any) -> tuple[int, Any]:
        url = self.server.url + path
        async with self.http.request(method, url, json=body, **more) as answer:
            return answer.status, await answer.json()

    async def ask(self, model: str, organization: str = "") -> int:
        body = {"model": model, "prompt": "x", "max_tokens": 2}
        headers = {"X-Organization": organization} if organization else {}
        return (await self.call("POST", "/v1/completions", body, headers=headers))[0]

    async def reload(self) -> tuple[int, Any]:
        return await self.call("POST", "/reload")

    async def models(self) -> dict[str, Any]:
        return {row["name"]: row for row in (await self.call("GET", "/models"))[1]["models"]}

    async def until(self, true: Callable[[], Any]) -> None:
        while not true():
            await asyncio.sleep(0.01)

    def said(self, kind: str) -> list[Any]:
        return [about for what, about in self.news if what == kind]


@asynccontextmanager
async def place(folder: Path, **more: Any) -> AsyncIterator[Place]:
    file = folder / "modelium.yaml"
    async with aiohttp.ClientSession() as http:
        here = Place(None, file, http, [])  # type: ignore[arg-type]
        here.save()
        async with serving(order(file, port=0, **more)) as here.server:
            here.server.cluster.watchers.news.append(lambda *told: here.news.append(told))
            yield here


def visit(folder: Path, act: Callable[[Place], Awaitable[None]], **more: Any) -> None:
    async def run() -> None:
        async with asyncio.timeout(QUIET_S), place(folder, **more) as here:
            await act(here)

    run_as_served(run())


def test_a_bad_file_changes_nothing_and_says_why_in_one_line(tmp_path: Path) -> None:
    async def act(here: Place) -> None:
        assert await here.ask("a") == 200
        [before] = (await here.models())["a"]["instances"]
        changed = {"a": {"catalogue": "qwen2.5-1.5b"}, "c": {}}
        keys = tmp_path / "keys.json"
        keys.write_text("no keys")
        for sections, why in [
            ({"models": changed}, "models.c: no model called 'c'"),
            ({"models": {}, "polcy": "gdsf"}, "polcy: unknown key. Did you mean 'policy'?"),
            ({"models": {}, "policy": "gdfs"}, "no policy called 'gdfs'"),
            ({"models": {}, "gateway": {**GATEWAY, "keys": str(keys)}}, "not a file of API keys"),
            ({"models": {}, "gateway": {**GATEWAY, "tls_key": "x", "tls_certificate": "y"}}, "TLS"),
            ({"models": {"a": {"catalogue": "qwen2.5-1.5b", "runtime": "vllm"}}}, "give `path`"),
        ]:
            here.save(**sections)
            status, told = await here.reload()
            message = told["error"]["message"]
            assert (status, message.count("\n")) == (409, 0)
            assert message.startswith("nothing is changed: ")
            assert why in message
        assert len(here.said("reload-refused")) == 6
        rows = await here.models()
        assert set(rows) == {"a", "b"}
        assert [one["id"] for one in rows["a"]["instances"]] == [before["id"]]
        assert here.server.operations.status()["policy"] == "lru"
        assert await here.ask("b") == 200

    visit(tmp_path, act)


def test_what_changed_is_taken_up_while_requests_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def act(here: Place) -> None:
        assert await here.ask("a") == await here.ask("b") == 200
        [before] = (await here.models())["a"]["instances"]
        over = asyncio.Event()

        async def go_on() -> set[int]:
            statuses = set()
            while not over.is_set():
                statuses.add(await here.ask("a"))
            return statuses

        going = [asyncio.create_task(go_on()) for _ in range(3)]
        models = {"a": {**SMALL, "kv": "1GiB"}, "c": SMALL}
        gateway = {**GATEWAY, "organizations": {"acme": {"requests_per_minute": 1}}}
        live = {**here.live, "stop_grace": "3s", "load_tries": 7, "keep": "1d", "stall": "9min"}
        here.save(models=models, policy="gdsf", gateway=gateway, live=live)
        status, told = await here.reload()
        assert status == 200
        assert told["why"] == (
            "models added: c; models removed: b; models replaced: a; policy lru -> gdsf; changed:"
            " gateway.organizations.acme, live.stop_grace, live.load_tries, live.keep;"
            " only a restart changes: live.stall"
        )
        assert (told["added"], told["removed"], told["replaced"]) == (["c"], ["b"], ["a"])
        assert here.server.operations.status()["policy"] == "gdsf"
        assert type(here.server.driver.policy).__name__ == "Gdsf"
        assert await here.ask("c") == 200
        state, cluster = here.server.cluster.state, here.server.cluster
        await here.until(lambda: "b" not in state.models)
        await here.until(lambda: before["id"] not in state.instances)
        over.set()
        assert await asyncio.gather(*going) == [{200}] * 3
        assert await here.ask("b") == 404
        [after] = [copy for copy in state.instances_of("a") if copy.phase == "ready"]
        assert after.id != before["id"]
        replaced = [line for _, line in cluster.decisions if line.kind == "move"]
        assert [line.reason for line in replaced] == ["its settings changed"]
        assert state.models["a"].kv_bytes == 1 << 30
        assert cluster.retention.keep_s == 86400.0
        assert (cluster.deadlines.stop_grace_s, cluster.failures.patience.tries) == (3.0, 7)
        assert [await here.ask("a", "acme") for _ in range(2)] == [200, 429]
        assert [await here.ask("a", "other") for _ in range(2)] == [200, 200]

        code = await asyncio.to_thread(invoke, ["reload", "--url", here.server.url])
        assert code == 0
        assert capsys.readouterr().out == "only a restart changes: live.stall\n"
        keys = Keys(tmp_path / "keys.json")
        secret = keys.make("ops", "", ("user", "admin"))
        gateway["keys"] = str(keys.path)
        here.save(models=models, policy="gdsf", gateway=gateway, live=live)
        code = await asyncio.to_thread(invoke, ["reload", "--json", "--url", here.server.url])
        told = json.loads(capsys.readouterr().out)
        assert (code, told["added"], told["replaced"]) == (0, [], [])
        assert "gateway.keys" in told["changed"]
        assert (await here.call("GET", "/status"))[0] == 401
        key = {"Authorization": f"Bearer {secret}"}
        assert (await here.call("GET", "/status", headers=key))[0] == 200

    visit(tmp_path, act)


def test_a_pinned_model_is_replaced_where_there_is_room_for_one_only(tmp_path: Path) -> None:
    async def act(here: Place) -> None:
        one = {"catalogue": "qwen2.5-0.5b", "kv": "15GiB", "pinned": True}
        here.save(models={"a": one, "b": one})
        assert (await here.reload())[1]["replaced"] == ["a", "b"]
        cluster = here.server.cluster

        def ready() -> list[str]:
            copies = cluster.state.instances.values()
            return sorted(copy.model for copy in copies if copy.phase == "ready")

        await here.until(lambda: ready() == ["a", "b"])
        before = set(cluster.state.instances)
        slower = {**one, "settings": {"sleep_s": {"1": 3.0}}}
        here.save(models={"a": slower, "b": {**one, "slo": {"ttft": "9s"}}})
        told = (await here.reload())[1]
        assert (told["replaced"], told["adjusted"]) == (["a"], ["b"])
        await here.until(lambda: len(before & set(cluster.state.instances)) == 1)
        await here.until(lambda: ready() == ["a", "b"])
        assert cluster.state.models["b"].slo.ttft_s == 9.0
        assert len(cluster.state.instances) == 2

    visit(tmp_path, act)


def test_a_renewed_certificate_is_shown_to_new_connections(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    certificate, key, _ = certificates(tmp_path)
    later, later_key, _ = certificates(tmp_path / "new")
    gateway = {**GATEWAY, "tls_certificate": str(certificate), "tls_key": str(key)}

    async def act(here: Place) -> None:
        here.save(gateway=gateway)
        assert (await here.reload())[1]["why"].endswith("the TLS certificate")

        async def shown() -> str:
            host, port = here.server.url.removeprefix("http://").split(":")
            return await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))

        first = await shown()
        assert first == certificate.read_text()
        certificate.write_text("half a certifi")
        server = here.server
        await server.reload.take_up()
        assert "TLS cannot be set up" in here.said("reload-refused")[-1]["why"]
        assert await shown() == first
        later.replace(certificate)
        later_key.replace(key)
        await server.reload.take_up()
        assert here.said("reloaded")[-1]["why"] == "the TLS certificate"
        assert await shown() == certificate.read_text() != first

    visit(tmp_path, act)


def test_grpc_shows_a_renewed_certificate_and_keeps_what_it_cannot_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").mkdir()
    certificate, key, _ = certificates(tmp_path)
    later, later_key, _ = certificates(tmp_path / "new")
    tls = {"tls_certificate": str(certificate), "tls_key": str(key)}
    for name, value in tls.items():
        monkeypatch.setitem(GATEWAY, name, value)

    async def act(here: Place) -> None:
        [note] = [note for note in here.server.notes if "gRPC" in note]
        host, port = note.removeprefix("KServe's gRPC is at ").split(":")

        async def shown() -> str:
            return await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))

        first = await shown()
        assert first == certificate.read_text()
        for name in tls:
            monkeypatch.delitem(GATEWAY, name)
        here.save(gateway={**GATEWAY, "max_body": "1KiB", "max_wait": "9s"})
        told = await here.server.reload()
        assert told["changed"] == ["gateway.max_wait"]
        assert told["restart"] == ["gateway.tls_certificate", "gateway.tls_key", "gateway.max_body"]
        moved = {"tls_certificate": str(later), "tls_key": str(later_key)}
        here.save(gateway={**GATEWAY, **moved})
        told = await here.server.reload()
        assert (told["changed"], told["restart"]) == (
            ["gateway.tls_certificate", "gateway.tls_key", "gateway.max_wait"], []
        )  # fmt: skip
        assert await shown() == later.read_text() != first

    with kept_port() as port:
        monkeypatch.setitem(GATEWAY, "grpc_port", port)
        visit(tmp_path, act)


def test_a_model_that_is_being_deleted_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    remove_model = ModelRepository.remove_model

    def slowly(self: ModelRepository, name: str) -> None:
        begun.set()
        go_on.wait(30.0)
        remove_model(self, name)

    monkeypatch.setattr(ModelRepository, "remove_model", slowly)
    repository = ModelRepository(tmp_path / "repository")
    repository.add_model_from_incoming(tiny.llama(tmp_path / "files"), "c")
    monkeypatch.setitem(CONFIG, "model_repository", str(repository.path))

    async def act(here: Place) -> None:
        assert await here.ask("c") == 200
        removing = asyncio.create_task(here.call("DELETE", "/models/c"))
        await asyncio.to_thread(begun.wait, 30.0)
        status, told = await here.reload()
        assert (status, "c is being removed" in told["error"]["message"]) == (409, True), told
        go_on.set()
        assert (await removing)[0] == 200
        assert (await here.reload())[1]["why"] == "nothing has changed"
        assert set(await here.models()) == {"a", "b"}

    visit(tmp_path, act)


def test_the_ram_of_real_gpus_is_watched_for_engines_that_a_reload_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = [HostMemory(100 * GIB, 60 * GIB)]

    def as_if_real(order: Any) -> Any:
        inventory, *rest = hardware(order)
        monkeypatch.setattr(inventory, "pretend", False, raising=False)
        return inventory, *rest

    def free(here: Place) -> int:
        here.server.cluster.host.look()
        return int(here.server.operations.status()["hosts"][0]["free_bytes"])

    monkeypatch.setattr("modelium.serving.hardware", as_if_real)
    monkeypatch.setattr(host_memory, "read", lambda: memory[0])
    monkeypatch.setattr(host_memory, "reader", lambda: host_memory.read)
    monkeypatch.setitem(managers._MAKERS, "vllm", managers._MAKERS["emulated"])
    path = tiny.llama(tmp_path / "files")

    async def act(here: Place) -> None:
        assert await here.ask("a") == 200
        c = {"path": str(path), "runtime": "vllm"}
        here.save(models={"a": SMALL, "b": SMALL, "c": c})
        assert (await here.reload())[1]["added"] == ["c"]
        assert free(here) == 40 * GIB  # (60 - 10) / 1.25
        memory[0] = HostMemory(100 * GIB, 35 * GIB)
        assert free(here) == 20 * GIB

    visit(tmp_path, act)


def test_a_watched_file_is_taken_up_when_it_is_saved(tmp_path: Path) -> None:
    async def act(here: Place) -> None:
        here.file.write_text("models: {a: ")
        await here.until(lambda: here.said("reload-refused"))
        here.save(models={})
        await here.until(lambda: here.said("reloaded"))
        assert here.said("reloaded")[0]["why"] == "models removed: a, b"

    visit(tmp_path, act, watch_config=True)


def test_a_watched_file_is_taken_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").mkdir()
    certificate, key, _ = certificates(tmp_path)
    later, later_key, _ = certificates(tmp_path / "new")
    tls = {**GATEWAY, "tls_certificate": str(certificate), "tls_key": str(key)}
    begin, over = asyncio.Semaphore(0), asyncio.Semaphore(0)

    async def sleep(delay_s: float) -> None:
        over.release()
        await begin.acquire()

    monkeypatch.setattr(config_watch, "asyncio", SimpleNamespace(sleep=sleep))

    async def act(here: Place) -> None:
        async def reloads() -> int:
            for _ in range(4):
                begin.release()
                await over.acquire()
            return len(here.said("reloaded"))

        await over.acquire()
        assert await reloads() == 0
        here.save(models={"a": SMALL})
        assert (await here.reload())[0] == 200
        assert await reloads() == 1, "it was taken up by hand already"
        here.save(models={"a": SMALL}, gateway=tls)
        assert await reloads() == 2, "the certificate was read with the file that names it"
        later.replace(certificate)
        later_key.replace(key)
        assert await reloads() == 3
        here.file.write_text("models: {a: ")
        assert (await reloads(), len(here.said("reload-refused"))) == (3, 1)

    visit(tmp_path, act, watch_config=True)


def test_what_comes_after_a_reload_is_known_to_policies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelium.repository.watching.STILL_S", 0.1)
    repository = ModelRepository(tmp_path / "repository")
    monkeypatch.setitem(CONFIG, "model_repository", str(repository.path))

    async def act(here: Place) -> None:
        here.save(policy="gdsf")
        assert (await here.reload())[0] == 200
        tiny.llama(tmp_path / "files").rename(repository.incoming / "c")
        await here.until(lambda: here.said("new-model"))
        [gpu, *_] = here.server.cluster.state.gpus
        assert here.server.cluster.state.costs.work_s("c", gpu, 10, 10) > 0

    visit(tmp_path, act)
