"""Playing a trace against a running server, as its users would have: for trials and comparisons.

Requests go out when the trace says (`speed` times as fast), whether or not earlier ones have been
answered. Prompts are as many words as the trace has tokens; answers are as long as they were.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson

from modelium.client.client import ServerError
from modelium.units import listed

if TYPE_CHECKING:
    from modelium.traces import Trace

STREAM_EVERY = 2
"""Every second request is streamed."""
WORD = "word "


@dataclass
class Tally:
    """What became of the requests so far."""

    sent: int = 0
    completed: int = 0
    refused: int = 0
    failed: int = 0
    skipped: int = 0
    """Of models that the server does not have."""
    errors: dict[str, int] = field(default_factory=dict)

    def sentence(self) -> str:
        """All of it in a line."""
        skipped = f", {self.skipped:,} skipped (no such model)" if self.skipped else ""
        return (
            f"{self.sent:,} sent: {self.completed:,} answered, {self.refused:,} refused,"
            f" {self.failed:,} failed{skipped}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "sent": self.sent,
            "completed": self.completed,
            "refused": self.refused,
            "failed": self.failed,
            "skipped": self.skipped,
            "errors": self.errors,
        }


@dataclass(frozen=True)
class Play:
    """How a trace is played."""

    url: str
    key: str = ""
    speed: float = 1.0
    most: int = 1_000_000_000
    """Requests, at most."""
    chat: bool = False
    verify: bool = True
    """False: whoever answers there is trusted, such as the server of this very process."""


async def play(
    trace: Trace, how: Play, seen: Callable[[Tally], None] = lambda tally: None
) -> Tally:
    """Send the trace's requests and wait for all answers; `seen` is told after each.

    Raises ServerError if nothing can be sent: no answer, or none of the trace's models is there.
    """
    tally = Tally()
    headers = {"Authorization": f"Bearer {how.key}"} if how.key else {}
    connector = aiohttp.TCPConnector(limit=0, ssl=how.verify)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        how.url, connector=connector, timeout=timeout, headers=headers
    ) as http:
        known = await _models(http)
        if len(trace) and known.isdisjoint(trace.model.names):
            named = f"{listed(trace.model.names)}; it serves {listed(sorted(known)) or 'nothing'}"
            raise ServerError(f"{how.url} has none of the trace's models: {named}")
        begun_s = time.monotonic()
        asking: set[asyncio.Task[None]] = set()
        for number, body in _bodies(trace, known, how, tally):
            due_s = begun_s + float(trace.arrival_s[number]) / how.speed
            if (wait_s := due_s - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            tally.sent += 1
            task = asyncio.create_task(_ask(http, body, tally, seen, chat=how.chat))
            asking.add(task)
            task.add_done_callback(asking.discard)
        while asking:
            await asyncio.wait(asking)
    return tally


def _bodies(trace: Trace, known: set[str], how: Play, tally: Tally) -> Any:
    """(row, body) of each request that is sent."""
    names, codes = trace.model.names, trace.model.codes.tolist()
    for row in range(min(len(codes), how.most)):
        model = names[codes[row]]
        if model not in known:
            tally.skipped += 1
            continue
        text = WORD * int(trace.prompt_tokens[row])
        body: dict[str, Any] = {"model": model, "max_tokens": max(1, int(trace.output_tokens[row]))}
        body |= {"messages": [{"role": "user", "content": text}]} if how.chat else {"prompt": text}
        if row % STREAM_EVERY:
            body["stream"] = True
        yield row, body


async def _models(http: aiohttp.ClientSession) -> set[str]:
    """Names of the models that the server has."""
    try:
        async with http.get("/v1/models") as answer:
            text = await answer.read()
            if error := _error(answer.status, text, stream=False):
                raise ServerError(f"asked for its models, the server answered {error}")
        return {one["id"] for one in orjson.loads(text)["data"]}
    except (aiohttp.ClientError, OSError) as error:
        raise ServerError(f"no answer when asked for the models: {error}") from None
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise ServerError("asked for its models, the server answered something else") from None


async def _ask(
    http: aiohttp.ClientSession,
    body: dict[str, Any],
    tally: Tally,
    seen: Callable[[Tally], None],
    *,
    chat: bool,
) -> None:
    path = "/v1/chat/completions" if chat else "/v1/completions"
    head = {"Content-Type": "application/json"}
    try:
        async with http.post(path, data=orjson.dumps(body), headers=head) as answer:
            text = await answer.read()
            error = _error(answer.status, text, stream=bool(body.get("stream")))
            refused = answer.status in (429, 503)
    except (aiohttp.ClientError, OSError) as broken:
        error, refused = f"{type(broken).__name__}", False
    if not error:
        tally.completed += 1
    else:
        tally.refused += refused
        tally.failed += not refused
        tally.errors[error] = tally.errors.get(error, 0) + 1
    seen(tally)


def _error(status: int, text: bytes, *, stream: bool) -> str:
    """What went wrong, "" if nothing did; a stream has to come to its end."""
    if status != 200:
        try:
            return f"{status}: {orjson.loads(text)['error']['message']}"
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return str(status)
    if stream and not text.endswith(b"data: [DONE]\n\n"):
        return "a stream without an end"
    if stream and b'data: {"error"' in text:
        return "an error within a stream"
    return ""
