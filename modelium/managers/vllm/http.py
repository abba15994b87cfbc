"""What is asked of a running vLLM over HTTP; each call is a connection of its own.

The endpoints for sleep, pause and weights exist only with VLLM_SERVER_DEV_MODE=1.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from modelium.managers.engine import Engine, EngineError

LOOK_S = 0.1
"""How often a busy engine's counters are read while it is watched."""
_SAMPLE = re.compile(r"^(vllm:\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_WORK = (
    "vllm:iteration_tokens_total_count",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
)
"""Counters of which one grows with every step of the engine."""


class NoAnswerError(EngineError):
    """It took the request and said nothing in time."""


def ask(
    engine: Engine,
    path: str,
    deadline_s: float,
    *,
    post: bool = False,
    body: Mapping[str, Any] | None = None,
) -> Any:
    """Send one request and return its answer, JSON or text. Raises EngineError.

    `deadline_s` bounds each wait for the other side; these answers come in one piece.
    """
    address = urlsplit(engine.url)
    connection = http.client.HTTPConnection(
        address.hostname or "", address.port, timeout=max(0.05, deadline_s)
    )
    try:
        content = None if body is None else json.dumps(body)
        method = "POST" if post or body is not None else "GET"
        headers = {"content-type": "application/json"}
        connection.request(method, address.path + path, content, headers)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
    except TimeoutError:
        why = f"{engine.instance}: {path} gave no answer in {deadline_s:.1f} s"
        raise NoAnswerError(why) from None
    except (OSError, http.client.HTTPException) as error:
        told = error.strerror if isinstance(error, OSError) and error.strerror else repr(error)
        raise EngineError(f"{engine.instance}: {path}: {told}") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise EngineError(f"{engine.instance}: {path} answered {answer.status}: {_said(text)}")
    return json.loads(text) if answer.headers.get_content_type() == "application/json" else text


def healthy(engine: Engine, deadline_s: float = 2.0) -> bool:
    """Whether the server listens and has not given up; it may still be unable to serve."""
    try:
        ask(engine, "/health", deadline_s)
    except EngineError:
        return False
    return True


def canary(engine: Engine, deadline_s: float) -> None:
    """Have one token made; a model that only embeds embeds one. Raises EngineError."""
    if engine.extra.get("task") == "embed":
        ask(engine, "/v1/embeddings", deadline_s, body={"model": engine.name, "input": "1"})
    else:
        body = {"model": engine.name, "prompt": "1", "max_tokens": 1, "temperature": 0}
        ask(engine, "/v1/completions", deadline_s, body=body)


def is_sleeping(engine: Engine, deadline_s: float) -> bool:
    """Whether its memory is given up, or its scheduler paused by a sleep. Raises EngineError."""
    return bool(ask(engine, "/is_sleeping", deadline_s)["is_sleeping"])


def sleep(engine: Engine, level: int, deadline_s: float) -> None:
    """Put it to sleep and see that it sleeps. Raises EngineError."""
    until_s = time.monotonic() + deadline_s
    ask(engine, f"/sleep?level={level}", deadline_s, post=True)
    if not is_sleeping(engine, until_s - time.monotonic()):
        raise EngineError(f"{engine.instance} was told to sleep and says that it is awake")


def wake(engine: Engine, deadline_s: float) -> None:
    """Wake it and see that it is awake and answers. Raises EngineError.

    After level 2 the weights are gone: they are read again before anything is scheduled, and what
    prefixes the cache knew belongs to no memory any more.
    """
    until_s = time.monotonic() + deadline_s
    if _samples(engine, until_s - time.monotonic()).get("discard_all"):
        ask(engine, "/wake_up?tags=weights", until_s - time.monotonic(), post=True)
        reload = {"method": "reload_weights"}
        ask(engine, "/collective_rpc", until_s - time.monotonic(), body=reload)
        ask(engine, "/wake_up?tags=kv_cache", until_s - time.monotonic(), post=True)
        ask(engine, "/reset_prefix_cache", until_s - time.monotonic(), post=True)
    else:
        ask(engine, "/wake_up", until_s - time.monotonic(), post=True)
    if is_sleeping(engine, until_s - time.monotonic()):
        raise EngineError(f"{engine.instance} was woken and says that it sleeps")
    canary(engine, until_s - time.monotonic())


def abort(engine: Engine, deadline_s: float) -> None:
    """End what is in flight and take no more: a server with open streams ignores SIGTERM."""
    ask(engine, "/pause?mode=abort", deadline_s, post=True)


def in_flight(engine: Engine, deadline_s: float) -> int:
    """Requests that it has, running and waiting. Raises EngineError."""
    samples = _samples(engine, deadline_s)
    return int(samples["vllm:num_requests_running"] + samples["vllm:num_requests_waiting"])


def moves(engine: Engine, deadline_s: float) -> bool:
    """Whether it makes progress: a busy one takes steps, an idle one answers a canary.

    One that sleeps is as it should be. Raises EngineError if it answers that it cannot serve.
    """
    until_s = time.monotonic() + deadline_s
    before: dict[str, float] = {}
    try:
        before = _samples(engine, deadline_s)
        if not before.get("awake", 1.0):
            return True
        if not before["vllm:num_requests_running"] + before["vllm:num_requests_waiting"]:
            canary(engine, until_s - time.monotonic())
            return True
        while (left_s := until_s - time.monotonic()) > 0:
            if _work(_samples(engine, left_s)) > _work(before):
                return True
            time.sleep(min(LOOK_S, left_s))
    except NoAnswerError:
        with contextlib.suppress(NoAnswerError):
            return bool(before) and _work(_samples(engine, 1.0)) > _work(before)
    return False


def _samples(engine: Engine, deadline_s: float) -> dict[str, float]:
    """Its metrics, summed over labels, and its state of sleep by that state's own name."""
    samples: dict[str, float] = {}
    for name, labels, value in _SAMPLE.findall(ask(engine, "/metrics", deadline_s)):
        if state := re.search(r'sleep_state="(\w+)"', labels):
            name = state[1]
        samples[name] = samples.get(name, 0.0) + float(value)
    return samples


def _work(samples: Mapping[str, float]) -> float:
    return sum(samples.get(name, 0.0) for name in _WORK)


def _said(text: str) -> str:
    """The message of an error, which vLLM sends in OpenAI's shape."""
    try:
        said = json.loads(text)["error"]["message"]
    except (ValueError, TypeError, KeyError):
        said = text
    return " ".join(str(said).split())[:200]
