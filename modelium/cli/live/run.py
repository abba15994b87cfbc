"""`modelium run` (alias `serve`): serve models live, under a policy."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelium.cli.options import Times
from modelium.cli.saying import GONE, say, silence
from modelium.errors import one_line
from modelium.policies import DEFAULT_POLICY
from modelium.units import counted, rfc3339

if TYPE_CHECKING:
    from modelium.client.replay import Tally
    from modelium.serving import LaunchSpec, Server
    from modelium.traces import Trace

FILE = click.Path(path_type=Path)
DRAW_EVERY_S = 0.5


@click.command()
@click.option("--config", type=FILE, help="Configuration file.  [default: searched for]")
@click.option(
    "--policy",
    metavar="NAME[:KEY=VALUE,...]",
    help=f"[default: the configuration's; {DEFAULT_POLICY}]",
)
@click.option("--gpus", default="", metavar="FLEET", help="Simulated GPUs, such as 4xh100-80g.")
@click.option("--host", help="Address to listen on.  [default: the configuration's; 127.0.0.1]")
@click.option("--insecure", is_flag=True, help="Allow other machines to connect without API keys.")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 picks a free one."
)
@click.option("--emulate", is_flag=True, help="Serve all models with emulated engines.")
@click.option(
    "--speed", type=Times(), help="Speed-up of emulated engines; 10 is ten times as fast."
)
@click.option("--keep-engines", is_flag=True, help="Leave the engines running on exit.")
@click.option(
    "--watch-config", is_flag=True, help="Apply configuration changes whenever the file is saved."
)
@click.option("--out", type=FILE, help="Folder for tables and report, written on exit.")
@click.option("--force", is_flag=True, help="Overwrite results in that folder.")
@click.option("--replay", type=FILE, metavar="TRACE", help="Replay this trace against the server.")
@click.option(
    "--replay-speed",
    default=1.0,
    type=Times(),
    help="Speed-up of the replay; 10 is ten times as fast.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, help="Random seed for stochastic policies."
)
@click.option(
    "--log-format", type=click.Choice(["auto", "text", "json"]), default="auto",
    help="auto: live view on a terminal, lines of text otherwise.",
)  # fmt: skip
def run(
    config: Path | None,
    policy: str | None,
    gpus: str,
    host: str | None,
    insecure: bool,
    port: int | None,
    emulate: bool,
    speed: float | None,
    keep_engines: bool,
    watch_config: bool,
    out: Path | None,
    force: bool,
    replay: Path | None,
    replay_speed: float,
    seed: int,
    log_format: str,
) -> None:
    """Serve models: one address for clients, engines loaded and unloaded by the policy.

    Ctrl-C, SIGTERM or a closed terminal drains the server first; a second signal stops it at once.
    """
    from modelium.serving import order

    asked = order(
        config, policy or "", gpus=gpus, host=host, port=port, emulate=emulate, speed=speed,
        keep_engines=keep_engines, seed=seed, insecure=insecure, watch_config=watch_config,
    )  # fmt: skip
    if out is not None:
        from modelium.results.record import check_folder

        check_folder(out, replace=force)
    shown = log_format == "auto" and sys.stdout.isatty()
    trace = _trace(replay)
    as_json = log_format == "json"
    journal = _loop(_serve(asked, trace, replay_speed, shown=shown, as_json=as_json))
    if out is not None:
        _record(journal, out, force)


def _loop(work: Any) -> Path:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        journal: Path = runner.run(work)
        return journal


def _trace(path: Path | None) -> Trace | None:
    from modelium.traces import read_trace

    return read_trace(path) if path is not None else None


async def _serve(
    asked: LaunchSpec, trace: Trace | None, speed: float, *, shown: bool, as_json: bool
) -> Path:
    from modelium.serving import serving

    playing: asyncio.Task[Tally] | None = None
    async with serving(asked) as server:
        _say(server, as_json)
        if trace is not None:
            playing = _playing(server, trace, speed, quiet=shown, as_json=as_json)
        if shown:
            await _draw(server)
        else:
            server.cluster.watchers.news.append(_lines(as_json))
            await server.stop.wait()
            say("Ending: requests in flight may finish", err=True)
    if playing is not None and not playing.cancelled():
        tally = playing.result()  # or why nothing could be sent
        if shown:
            say(f"Replay  {tally.sentence()}")
    return server.cluster.journal.path


def _playing(
    server: Server, trace: Trace, speed: float, *, quiet: bool, as_json: bool
) -> asyncio.Task[Tally]:
    """The trace, on its way; a server that cannot be asked at all is stopped."""
    from modelium.client.client import KEY_VARIABLE
    from modelium.client.replay import Play, play

    def ended(task: asyncio.Task[Tally]) -> None:
        if task.cancelled():
            return
        if task.exception() is not None:
            server.stop.set()
        elif as_json:
            _json("replayed", task.result().as_dict())
        elif not quiet:
            say(f"Replay  {task.result().sentence()}")

    key = os.environ.get(KEY_VARIABLE, "")
    task = asyncio.create_task(play(trace, Play(server.url, key, speed, verify=False)))
    task.add_done_callback(ended)
    server.on_end(task.cancel)
    return task


def _say(server: Server, as_json: bool) -> None:
    status = server.operations.status()
    told = {
        "url": server.url,
        "policy": status["policy"],
        "gpus": len(status["gpus"]),
        "models": status["models"],
        "notes": list(server.notes),
    }
    if as_json:
        _json("serving", told)
        return
    for note in server.notes:
        say(f"Note    {one_line(note)}")
    what = f"{counted(told['models'], 'model')} on {counted(told['gpus'], 'GPU')}"
    say(f"Serving {what} under {told['policy']}: {server.url}")


def _json(event: str, about: Mapping[str, Any]) -> None:
    """A line of the log: when, what, and about whom."""
    now = rfc3339(time.time())
    say(json.dumps({"time": now, "event": event, **about}, default=str))


def _lines(as_json: bool) -> Any:
    from modelium.cli.live.live_view import sentence

    def hear(what: str, about: Mapping[str, Any]) -> None:
        if as_json:
            if what not in ("gpus", "decide"):
                _json(what, about)
        elif (line := sentence(what, about)) is not None:
            say(line.plain)

    return hear


async def _draw(server: Server) -> None:
    """The live view, until the server is told to stop."""
    from rich.console import Console
    from rich.live import Live

    from modelium.cli.live.live_view import Screen

    screen, console = Screen(server.url), Console(highlight=False)
    server.cluster.watchers.news.append(screen.hear)
    try:
        with Live(console=console, auto_refresh=False, screen=True) as live:
            while not server.stop.is_set():
                live.update(screen.draw(server.operations.status(), *console.size), refresh=True)
                try:
                    async with asyncio.timeout(DRAW_EVERY_S):
                        await server.stop.wait()
                except TimeoutError:
                    continue
    except OSError as error:
        if error.errno not in GONE:
            raise
        silence(sys.stdout)  # the terminal is gone
        await server.stop.wait()


def _record(journal: Path, out: Path, force: bool) -> None:
    """Leave the same folder that a simulation leaves."""
    from modelium.cli.outcome import write_report
    from modelium.errors import RecordError
    from modelium.live.records.export import read_run
    from modelium.results.record import new_folder

    try:
        run_ = read_run(journal)
    except RecordError as error:  # nobody asked for anything: that is no failure
        say(f"Note    no report: {error}", err=True)
        return
    with new_folder(out, replace=force) as part:
        run_.fill(part)
        write_report([part], part / "report.html")
    say(f"Report  {out / 'report.html'}")
