"""HTTP itself: framing, limits, clients that leave, as a socket sees them."""

from __future__ import annotations

import contextlib
import json
import socket

import pytest

from tests.managers.emulation.conftest import TOKENS, Client


def request(body: dict[str, object], *lines: str, version: str = "1.1") -> bytes:
    content = json.dumps(body).encode()
    head = [f"POST /v1/completions HTTP/{version}", "host: x", "content-type: application/json"]
    return (
        "\r\n".join([*head, f"content-length: {len(content)}", *lines, "", ""]).encode() + content
    )


def read_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


HELLO = {"prompt": "hello", "max_tokens": 2}


def test_connections_are_kept_alive_and_requests_may_be_sent_ahead(quick: Client) -> None:
    with quick.socket() as connection:
        first = request({"prompt": "a", "max_tokens": 50, "stream": True})
        second = request(HELLO, "connection: close")
        connection.sendall(first + second)
        answer = read_all(connection)
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert answer.index(b"[DONE]") < answer.rindex(b"HTTP/1.1")
    head = answer[answer.rindex(b"HTTP/1.1") :]
    assert b"connection: close" in head


def test_old_clients_get_no_chunks(quick: Client) -> None:
    with quick.socket() as connection:
        connection.sendall(request({**HELLO, "stream": True}, version="1.0"))
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert body.startswith(b"data: ")
    assert body.endswith(b"data: [DONE]\n\n")


def test_a_body_may_come_in_chunks_byte_by_byte(quick: Client) -> None:
    content = json.dumps(HELLO).encode()
    raw = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
    raw += b"connection: close\r\n\r\n"
    raw += b"".join(b"1\r\n%b\r\n" % content[i : i + 1] for i in range(len(content)))
    with quick.socket() as connection:
        for i in range(0, len(raw), 7):
            connection.sendall(raw[i : i + 7])
        connection.sendall(b"0\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 200 OK")


def test_a_client_that_asks_before_it_sends_is_told_to(quick: Client) -> None:
    raw = request(HELLO, "expect: 100-continue", "connection: close")
    head, _, content = raw.partition(b"\r\n\r\n")
    with quick.socket() as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(content)
        assert read_all(connection).startswith(b"HTTP/1.1 200 OK")


def test_head_has_no_body(quick: Client) -> None:
    with quick.socket() as connection:
        connection.sendall(b"HEAD /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert b"content-length: " in head
    assert body == b""


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n", 404),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nhost: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"POST /sleep HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n", 413),
    ],
)
def test_what_cannot_be_understood_is_refused_and_the_line_cut(
    quick: Client, raw: bytes, status: int
) -> None:
    with quick.socket() as connection:
        connection.sendall(raw)
        answer = connection.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        with contextlib.suppress(ConnectionResetError):  # what was still coming was thrown away
            assert read_all(connection) == b""
    assert quick.ask("GET", "/health")[0] == 200


def test_a_client_that_leaves_ends_its_request(steady: Client) -> None:
    served = steady.metric("vllm:request_success_total")
    with steady.socket() as connection:
        connection.sendall(request({"prompt": "a", "max_tokens": TOKENS, "stream": True}))
        while b"data: " not in connection.recv(1 << 16):
            pass
        steady.until("vllm:num_requests_running", 1)
    steady.until("vllm:num_requests_running", 0)
    assert steady.metric("vllm:kv_cache_usage_perc") == 0
    assert steady.metric("vllm:request_success_total") == served


def test_a_client_that_leaves_without_stream_ends_its_request_too(steady: Client) -> None:
    with steady.socket() as connection:
        connection.sendall(request({"prompt": "a", "max_tokens": TOKENS}))
        steady.until("vllm:num_requests_running", 1)
    steady.until("vllm:num_requests_running", 0)


def test_requests_that_were_sent_ahead_end_with_their_client(steady: Client) -> None:
    long = {"prompt": "a", "max_tokens": TOKENS}
    with steady.socket() as connection:
        connection.sendall(request(long) + request(long))
        steady.until("vllm:num_requests_running", 1)
    steady.until("vllm:num_requests_running", 0)
    steady.until("vllm:num_requests_waiting", 0)


def test_an_error_waits_for_the_answers_before_it(steady: Client) -> None:
    with steady.socket() as connection:
        connection.sendall(request({"prompt": "a", "max_tokens": 5, "stream": True}) + b"nonsense")
        answer = read_all(connection)
    first, second = answer.split(b"HTTP/1.1 ")[1:]
    assert first.startswith(b"200")
    assert first.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert second.startswith(b"400")
