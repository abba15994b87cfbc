"""The live view on a terminal: GPUs with who is on them, and what was decided and why.

Built from the plain values of `Operations.status` and of events, so that `modelium run` draws the
same picture from within as `modelium watch` does from afar.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.text import Text

from modelium.core import was_cancelled
from modelium.units import counted, format_bytes, format_seconds

BAR = 20
"""Cells of a memory bar."""
MARKS = {
    "ready": ("●", "green"),
    "loading": ("⟳", "yellow"),
    "waking": ("⟳", "yellow"),
    "asleep": ("☾", "blue"),
    "suspending": ("☾", "blue"),
    "leaving": ("✕", "red"),
}
"""By phase: a sign and its colour; the sign alone tells it too."""
KEPT = 200
LEAST = 4
"""Lines of what happened that are shown on the lowest terminal."""


def head_line(status: Mapping[str, Any]) -> Text:
    """Policy, size, rate and who waits."""
    simulated = " (simulated)" if status["pretend_gpus"] else ""
    line = Text("modelium", style="bold")
    line.append(
        f" · {status['policy']} · {counted(len(status['gpus']), 'GPU')}{simulated}"
        f" · {counted(status['models'], 'model')} · up {_clock(status['up_s'])}",
        style="not bold",
    )
    line.append(
        f"   req/s {status['request_rate_per_s']:.1f}   running {status['running']}"
        f"   waiting {status['waiting']}",
        style="not bold",
    )
    if status["journal"]["failures"]:
        line.append("   journal cannot be written", style="bold red")
    if status["stopping"]:
        line.append(f"   {status['stopping']}", style="bold yellow")
    return line


def gpu_lines(status: Mapping[str, Any], width: int = 100) -> list[Text]:
    """One line per GPU: bar of its memory, busy share, and its instances."""
    names = max((len(gpu["id"]) for gpu in status["gpus"]), default=4)
    return [_gpu_line(gpu, names, width) for gpu in status["gpus"]]


def _gpu_line(gpu: Mapping[str, Any], names: int, width: int) -> Text:
    line = Text(f"{gpu['id']:<{names}} ", style="bold")
    if gpu["lost"]:
        return line.append(f"lost: {gpu['lost']}", style="bold red")
    whole = max(gpu["memory_bytes"], 1)
    coming = sum(
        i["bytes_per_gpu"] for i in gpu["instances"] if i["phase"] in ("loading", "waking")
    )
    full = round(BAR * min(1.0, (gpu["booked_bytes"] - coming) / whole))
    soon = min(BAR - full, round(BAR * coming / whole))
    line.append("█" * full, style="cyan").append("▒" * soon, style="yellow")
    line.append("░" * (BAR - full - soon), style="bright_black")
    held, there = format_bytes(gpu["booked_bytes"]), format_bytes(gpu["memory_bytes"])
    line.append(f"  {held:>8} of {there}", style="not bold")
    if gpu["utilisation"] is not None:
        line.append(f"  busy {gpu['utilisation']:4.0%}", style="not bold")
    for one in gpu["instances"]:
        line.append("  ").append_text(_instance(one))
    line.truncate(max(width, 40), overflow="ellipsis")
    return line


def _instance(one: Mapping[str, Any]) -> Text:
    sign, colour = MARKS.get(one["phase"], ("?", "white"))
    several = f"(tp{len(one['gpus'])})" if len(one["gpus"]) > 1 else ""
    text = Text(f"{one['model']}{several} ", style="not bold").append(sign, style=colour)
    if one["running"]:
        text.append(f"{one['running']}", style="not bold")
    if one["stuck"]:
        text.append(" does not end", style="bold red")
    if one["stage"]:
        left = f" ~{one['left_s']:.0f} s" if one["left_s"] else ""
        text.append(f" {one['stage']} {one['share'] or 0:.0%}{left}", style="yellow")
    return text


class Screen:
    """The whole picture; `hear` events as they come, `draw` now and then."""

    def __init__(self, url: str) -> None:
        """`url`: where clients find the server."""
        self.url = url
        self._said: deque[Text] = deque(maxlen=KEPT)

    def hear(self, what: str, about: Mapping[str, Any]) -> None:
        """Note what is worth a line."""
        if (line := sentence(what, about)) is not None:
            self._said.append(line)

    def draw(self, status: Mapping[str, Any], width: int = 100, height: int = 24) -> Group:
        """Head, GPUs, and as many of the latest lines as fit below, newest first."""
        above = [*_wrapped(head_line(status), width), Text(self.url, style="bright_black")]
        above += [*gpu_lines(status, width), Text()]
        room = max(LEAST, height - len(above) - 1)  # the cursor takes the last line
        said = list(self._said)[-room:][::-1]
        for line in said:
            line.truncate(width, overflow="ellipsis")
        return Group(*above, *said)


def _wrapped(line: Text, width: int) -> list[Text]:
    """The line itself, or two where the terminal is narrow: what is there, and who is served."""
    at = line.plain.find("   req/s ")
    if line.cell_len <= width or at < 0:
        return [line]
    first, second = line.divide([at])
    second.plain = second.plain.strip()
    for part in (first, second):
        part.truncate(width, overflow="ellipsis")
    return [first, second]


def sentence(what: str, about: Mapping[str, Any]) -> Text | None:
    """One event as a line, or None if it is not worth one."""
    match what:
        case "decision" if not about["error"]:
            return _decision(about, about["reason"])
        case "done" if was_cancelled(about["error"]):
            return _decision(about, about["error"], "yellow")
        case "decision" | "done" if about["error"]:
            return _decision(about, f"failed: {about['error']}", "red")
        case "done" if about["kind"] in ("load", "wake", "move"):
            return _decision(about, f"ready after {format_seconds(about['end_s'] - about['at_s'])}")
        case "lost":
            return _line("lost", about["instance"], about["why"], "red")
        case "adopted":
            return _line("adopted", about["instance"], "it ran already", "green")
        case "memory":
            return _line(
                "memory", about.get("instance") or about.get("gpu", ""), about["why"], "red"
            )
        case "journal":
            return _line("journal", "", about["why"], "green" if about["well"] else "red")
        case "files":
            return _line("files", about["model"], about["why"], "yellow")
        case "new-model" | "removed-model":
            return _line("model", about["model"], about["why"], "")
        case "refused-model" | "removal-failed" | "replacement-failed":
            return _line("model", about["model"], about["why"], "red")
        case "reloaded" | "reload-refused":
            return _line("reload", "", about["why"], "green" if what == "reloaded" else "red")
        case "policy-fault":
            return _line("policy", "", about["why"], "bold red")
        case "watch-fault":
            return _line("watch", about["watch"], about["why"], "bold red")
        case "survivor" | "swept" | "ended":
            return _line(what, about.get("instance", ""), about["why"], "yellow")
    return None


def _decision(about: Mapping[str, Any], says: str, style: str = "") -> Text:
    where = f"{about['model']} → {' '.join(about['gpus'])}" if about["gpus"] else about["model"]
    return _line(about["kind"], where, says, style, about.get("end_s") or about["at_s"])


def _line(kind: str, who: str, says: str, style: str = "", at_s: float | None = None) -> Text:
    when = "" if at_s is None else _clock(at_s)
    return Text(f"{when:>9} {kind:<7} ", style="bright_black").append(
        f"{who}   {says}", style=style or "default"
    )


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"
