"""Connections that send nothing, or too slowly: they end, and keep nobody out."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path
from typing import Any

import pytest

from modelium.gateway.access.connections import Bounds
from modelium.gateway.address import Address, read_certificate
from modelium.live.requests.dispatcher import DispatchSettings
from tests.gateway.site import Site, visit
from tests.gateway.test_access import certificates

BODY = {"model": "a", "prompt": "x", "max_tokens": 1}
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
USUAL = Bounds.of_this_process()
Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def opened(here: Site, sent: bytes = b"") -> Ends:
    port = int(here.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    here.stack.callback(writer.close)
    writer.write(sent)
    return reader, writer


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What it still had to say."""
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
def test_silence_ends_and_a_flood_of_it_keeps_nobody_out(tmp_path: Path, secure: bool) -> None:
    certificate, key, trusted = certificates(tmp_path)

    async def act(here: Site) -> None:
        here.house.go.set()
        assert (await here.post("/models/a/load"))[0] == 200
        connections = here.desk.connections
        silent = [await opened(here, b"GET /health HT" if n % 2 else b"") for n in range(30)]
        await asyncio.gather(*(ended(reader) for reader, _ in silent[:20]))
        assert len(connections) <= 11
        for _ in range(3):  # on the connection that was there before, and on new ones
            assert (await here.post("/v1/completions", BODY))[0] == 200
            async with here.http.get(here.url + "/health", headers={"Connection": "close"}) as told:
                assert told.status == 200

    async def wait(here: Site) -> None:
        reader, _ = await opened(here, b"\x16\x03\x01" if secure else b"POST / HTTP/1.1\r\nHo")
        assert await ended(reader) == b""

    address = Address(port=0, certificate=read_certificate(certificate, key))
    tls = {"address": address, "tls": trusted}
    more: dict[str, Any] = tls if secure else {}
    visit(tmp_path / "flood", act, bounds=Bounds(20, 8), held=True, **more)
    visit(tmp_path / "wait", wait, bounds=Bounds(20, 8, 0.3, 0.2), **more)


def test_where_all_are_at_work_the_next_is_told_so(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        asking = [asyncio.create_task(here.post("/v1/completions", BODY)) for _ in range(4)]
        await here.until(lambda: here.waiting() == 4)
        reader, _ = await opened(here, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        here.house.go.set()
        assert [status for status, _ in await asyncio.gather(*asking)] == [200] * 4
        # Now they only stand about: the one that does so for longest makes room.
        reader, _ = await opened(here, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")

    visit(tmp_path, act, bounds=Bounds(4, 4), held=True, dispatch=DispatchSettings())


def test_a_request_in_one_flight_with_the_end_of_the_handshake(tmp_path: Path) -> None:
    certificate, key, trusted = certificates(tmp_path)

    async def act(here: Site) -> None:
        loop = asyncio.get_running_loop()
        port = int(here.url.rpartition(":")[2])
        # One end in a thread, whose first write goes out with the handshake's last message.
        answer = await loop.run_in_executor(None, _asked, port, trusted)
        assert answer.startswith(b"HTTP/1.1 200 ")

    address = Address(port=0, certificate=read_certificate(certificate, key))
    visit(tmp_path, act, address=address, tls=trusted)


def _asked(port: int, trusted: ssl.SSLContext) -> bytes:
    import socket

    inbound, outbound = ssl.MemoryBIO(), ssl.MemoryBIO()
    secured = trusted.wrap_bio(inbound, outbound, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", port)) as plain:
        while True:
            try:
                secured.do_handshake()
                break
            except ssl.SSLWantReadError:
                plain.sendall(outbound.read())
                inbound.write(plain.recv(65536))
        secured.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        plain.sendall(outbound.read())  # the end of the handshake, and the request
        while True:
            try:
                return secured.read(65536)
            except ssl.SSLWantReadError:
                inbound.write(plain.recv(65536))


def test_a_body_may_be_slow_but_not_too_slow(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        here.house.go.set()
        text = json.dumps({**BODY, "user": "x" * (256 << 10)}).encode()
        head = HEAD + b"Content-Length: %d\r\n\r\n" % len(text)
        reader, writer = await opened(here, head + text[:-2])
        await asyncio.sleep(1.0)  # longer than a body of no size may take
        writer.write(text[-2:])
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        reader, _ = await opened(here, head + text[:10])
        assert b" 408 " in await reader.readline()
        assert b"only 10 bytes of the body came within" in await reader.read()

    visit(tmp_path, act, gateway={"read_timeout_s": 0.5}, held=True)
