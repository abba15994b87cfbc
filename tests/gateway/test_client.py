"""`modelium.client.client` in front of a real gateway, and of servers that break off."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from modelium.client.client import DEFAULT_URL, KEY_VARIABLE, URL_VARIABLE, Client, ServerError
from modelium.gateway.access.keys import Keys
from modelium.gateway.address import Address, read_certificate
from modelium.testing.scenarios import model
from tests.gateway.site import Site, visit

NAMED = "org/tiny-1.5_b"
TWO = [model("a", 60), model(NAMED, 60)]
BODY = {"model": "a", "prompt": "x", "max_tokens": 4}


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


async def call(do: Callable[..., Any], *args: Any) -> Any:
    """The client blocks; the gateway is in this process."""
    return await asyncio.to_thread(do, *args)


def test_what_it_is_told_is_what_the_gateway_knows(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        client = Client(here.url + "/")
        assert client.url == here.url
        assert (await here.post("/v1/completions", BODY))[0] == 200
        status = await call(client.status)
        assert [gpu["id"] for gpu in status["gpus"]] == ["n0g0"]
        assert status["models"] == 2
        models = {row["name"]: row["status"] for row in await call(client.models)}
        assert models == {"a": "ready", NAMED: "unloaded"}
        [usage] = await call(client.usage)
        assert (usage["requests"], usage["output_tokens"]) == (1, 4)

    visit(tmp_path, act, TWO)


def test_every_verb_acts_on_a_model_of_any_name(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        client = Client(here.url)
        for verb, status in (
            ("load", "ready"), ("sleep", "asleep"), ("wake", "ready"), ("unload", "unloaded"),
        ):  # fmt: skip
            told = await call(client.act, NAMED, verb)
            assert (told["name"], told["status"]) == (NAMED, status)
        lines = await call(client.decisions, NAMED)
        assert [line["kind"] for line in lines] == ["unload", "wake", "sleep", "load"]
        assert await call(client.decisions, NAMED, 1) == lines[:1]
        assert await call(client.decisions, "a") == []
        for verb, pinned in (("pin", True), ("unpin", False)):
            assert (await call(client.act, NAMED, verb))["pinned"] is pinned
        assert await call(client.delete, NAMED) == {"removed": NAMED}
        assert [row["name"] for row in await call(client.models)] == ["a"]

    visit(tmp_path, act, TWO)


def test_refusals_are_the_gateways_own_words(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    user, admin = keys.make("u", "acme", ("user",)), keys.make("root", "", ("user", "admin"))

    async def act(here: Site) -> None:
        hint = rf"\(\${KEY_VARIABLE} holds the key\)$"
        for key, says in (("", "401: .*"), ("mk-wrong", "401: unknown API key.*"),
                          (user, "403: .*")):  # fmt: skip
            with pytest.raises(ServerError, match=f"^{says}{hint}"):
                await call(Client(here.url, key).status)
        client = Client(here.url, admin)
        with pytest.raises(ServerError, match=r"^404: no model called 'aa'\. Did you mean 'a'\?$"):
            await call(client.act, "aa", "load")
        for verb in ("load", "pin"):
            await call(client.act, "a", verb)
        with pytest.raises(ServerError, match=r"^409: a is pinned$"):
            await call(client.act, "a", "unload")
        with pytest.raises(ServerError, match=r"^400: limit is '0'"):
            await call(client.decisions, "", 0)

    visit(tmp_path, act, keys=keys)


def test_address_and_key_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = Keys(tmp_path / "keys.json")
    admin = keys.make("root", "", ("user", "admin"))
    assert Client().url == DEFAULT_URL

    async def act(here: Site) -> None:
        monkeypatch.setenv(URL_VARIABLE, here.url)
        monkeypatch.setenv(KEY_VARIABLE, admin)
        assert (await call(Client().status))["models"] == 1
        with pytest.raises(ServerError, match="401"):  # what is given goes first
            await call(Client(key="mk-other").status)
        with pytest.raises(ServerError, match=r"^no answer from http://127\.0\.0\.1:9: "):
            await call(Client("http://127.0.0.1:9").status)

    visit(tmp_path, act, keys=keys)


def test_events_come_as_they_happen_until_the_end(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        events = Client(here.url).events()
        heard = [await call(next, events)]  # something is told every second
        assert (await here.post("/models/a/load"))[0] == 200
        while heard[-1][0] != "done":
            heard.append(await call(next, events))
        told = dict(heard)
        assert (told["decision"]["kind"], told["decision"]["model"]) == ("load", "a")
        assert told["done"]["error"] == ""
        await call(events.close)

    visit(tmp_path, act)


def test_a_certificate_of_ones_own_is_trusted_if_it_is_named(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip

    async def act(here: Site) -> None:
        trusting = Client(here.url, ca_file=str(certificate))
        assert (await call(trusting.status))["models"] == 1
        with pytest.raises(
            ServerError, match=r"https://.* has an untrusted certificate: self-signed"
        ):
            await call(Client(here.url).status)

    address = Address(port=0, certificate=read_certificate(certificate, key))
    trusted = ssl.create_default_context(cafile=certificate)
    visit(tmp_path, act, address=address, tls=trusted)


@asynccontextmanager
async def answering(raw: bytes) -> AsyncIterator[str]:
    """A server that sends this and hangs up."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "no answer from http://.*Is `modelium run` running"),
        (b"nonsense\r\n\r\n", "no answer from http://.*nonsense"),
        (HEAD + b'{"gpus": [', "broke off its answer"),
        (b"HTTP/1.1 200 OK\r\n\r\n{]", "is something else than Modelium's gateway"),
        (b'HTTP/1.1 200 OK\r\n\r\n["gpus"]', "is something else than Modelium's gateway"),
        (b"HTTP/1.1 502 Bad\r\n\r\n<p>bad", "^502: <p>bad$"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "^502: Bad Gateway$"),
    ],
)
def test_what_breaks_off_or_is_no_gateway_is_told(raw: bytes, says: str) -> None:
    async def run() -> None:
        async with answering(raw) as url:
            with pytest.raises(ServerError, match=says):
                await call(Client(url).status)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nevent: gpus\ndata: {}\n\n", "has ended$"),
        (HEAD + b"event: gpus\ndata: {}\n\n", "has ended$|broke off its events"),
        (b"HTTP/1.1 200 OK\r\n\r\nevent: gpus\ndata: {}\n\ndata: {\n", "broke off its events"),
    ],
)
def test_the_end_of_events_is_told(raw: bytes, says: str) -> None:
    async def run() -> None:
        async with answering(raw) as url:
            events = Client(url).events()
            assert await call(next, events) == ("gpus", {})
            with pytest.raises(ServerError, match=says):
                await call(next, events)

    asyncio.run(run())
