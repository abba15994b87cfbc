"""Emulated engines: real processes that answer in a profile's time and need no GPU.

    engine = EmulatedManager().start(Order("llama-8b#1", "llama-8b"))

For demonstrations, load tests, and clusters of pretended GPUs on one machine. What an engine plays
is in `Order.settings`, in the words of `modelium.managers.emulation.spec`; without an `engine`
there, it is a language model of 8 billion parameters on an H100.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psutil

from modelium.errors import ConfigError
from modelium.managers.emulation.spec import Generate, Spec, parse
from modelium.managers.engine import Engine, EngineError, Order, Process, Progress, StartError

LOOK_S = 0.2
"""How often a start looks whether it was cancelled."""
LOG_LINES = 20
_SERVER = "modelium.managers.emulated_server"

LLAMA_8B_ON_H100: Mapping[str, Any] = {
    "kind": "generate",
    "kv_tokens": 400_000,
    "step": {
        "decode_c": 0.0068, "decode_lo": 2e-5, "decode_hi": 2e-5, "decode_kv": 4.6e-8,
        "mixed_c": 0.0069, "mixed_lo": 9.2e-6, "mixed_hi": 2e-5, "mixed_hinge": 448,
        "mixed_kv": 4.6e-8, "mixed_ctx": 6.3e-10, "mixed_sq": 6.3e-10,
    },
}  # fmt: skip
"""Rounded from the fit to NVIDIA aiconfigurator's kernel times (vLLM 0.19, Apache-2.0)."""
DEFAULTS: Mapping[str, Any] = {
    "engine": LLAMA_8B_ON_H100,
    "stages": {"process": 3.0, "weights": 8.0, "compile": 6.0, "graphs": 4.0},
    "sleep_s": {"1": 2.0, "2": 0.5},
    "wake_s": {"1": 1.0, "2": 6.0},
}


class EmulatedManager:
    """Starts and ends emulated engines, one process each. Safe to call from several threads."""

    runtime = "emulated"

    def __init__(
        self, *, folder: Path | None = None, speed: float = 1.0, faults: bool = False
    ) -> None:
        """`folder` keeps specifications and logs; `speed` divides all times (inf: no waiting).

        With `faults`, engines serve POST /faults: for tests only.
        """
        self.folder = folder or Path(tempfile.gettempdir()) / f"modelium-emulated-{os.getuid()}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._speed, self._faults = speed, faults
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()

    # The interface of `modelium.managers.engine.Manager`

    def start(self, order: Order, progress: Progress | None = None) -> Engine:
        spec = self._spec(order)
        begun_s = time.monotonic()
        until_s = begun_s + order.deadline_s
        child, notes, log = self._spawn(order.instance, spec)
        try:
            process = Process(child.pid, psutil.Process(child.pid).create_time())
            stages = _Stages(begun_s, progress)
            port = self._follow(order, child, notes, stages, until_s)
            engine = Engine(
                instance=order.instance,
                model=order.model,
                runtime=self.runtime,
                url=f"http://{spec.host}:{port}",
                api="openai" if isinstance(spec.engine, Generate) else "kserve",
                name=spec.model,
                devices=order.devices,
                process=process,
                log=str(log),
                stages=stages.seconds,
            )
            _canary(engine, max(0.1, until_s - time.monotonic()))
        except BaseException as error:
            self._end(child.pid, grace_s=0.0)
            text = _last_lines(log)
            if isinstance(error, StartError):
                error.log = text
            elif isinstance(error, EngineError | psutil.NoSuchProcess):
                raise StartError(f"{order.model}: {error}", log=text) from error
            raise
        finally:
            os.close(notes)
        return engine

    def stop(self, engine: Engine, grace_s: float = 10.0) -> None:
        if engine.process is not None and _same(engine.process):
            self._end(engine.process.pid, grace_s)
        elif engine.process is not None:
            self._reap(engine.process.pid)

    def sleep(self, engine: Engine, level: int, deadline_s: float = 60.0) -> None:
        _ask(engine, "POST", f"/sleep?level={level}", deadline_s)
        if not _ask(engine, "GET", "/is_sleeping", deadline_s)["is_sleeping"]:
            raise EngineError(f"{engine.instance} says that it is awake")

    def wake(self, engine: Engine, deadline_s: float = 120.0) -> None:
        _ask(engine, "POST", "/wake_up", deadline_s)
        _canary(engine, deadline_s)

    def trouble(self, engine: Engine, deadline_s: float = 5.0) -> str:
        if engine.process is not None and not _same(engine.process):
            return "its process has ended"
        try:
            if _ask(engine, "GET", "/is_sleeping", deadline_s)["is_sleeping"]:
                return ""
            before = _work_done(engine, deadline_s)
            try:
                _canary(engine, deadline_s)
            except EngineError as error:
                return "" if _work_done(engine, deadline_s) > before else str(error)
        except EngineError as error:
            return str(error)
        return ""

    def adopt(self, engine: Engine) -> bool:
        return bool(engine.process and _same(engine.process) and not self.trouble(engine))

    def sweep(self, known: Iterable[Engine]) -> list[str]:
        keep = {engine.process.pid for engine in known if engine.process}
        with self._lock:
            keep |= self._children.keys()
        ended = []
        for pid, instance in self._left_behind():
            if pid not in keep:
                self._end(pid, grace_s=1.0)
                ended.append(f"process {pid} of {instance}")
        return ended

    def close(self) -> None:
        """Nothing is held."""

    # Starting

    def _spec(self, order: Order) -> Spec:
        given = {**DEFAULTS, "speed": self._speed, **order.settings, "model": order.model}
        try:
            return parse(given)
        except ConfigError as error:
            raise StartError(f"{order.model}: settings of the emulation: {error}") from error

    def _spawn(self, instance: str, spec: Spec) -> tuple[subprocess.Popen[bytes], int, Path]:
        """Start the process; return it, where it tells its progress, and its log."""
        stem = quote(instance, safe="#@")
        path, log = self.folder / f"{stem}.json", self.folder / f"{stem}.log"
        path.write_text(json.dumps(_as_json(spec)), encoding="utf-8")
        notes, theirs = os.pipe()
        command = [sys.executable, "-P", "-m", _SERVER, "--spec", str(path)]
        command += ["--notify", str(theirs), *(["--faults"] if self._faults else [])]
        try:
            with log.open("wb") as out:
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    pass_fds=(theirs,),
                    start_new_session=True,
                )
        except OSError as error:
            os.close(notes)
            raise StartError(f"{instance}: {error}") from error
        finally:
            os.close(theirs)
        with self._lock:
            self._children[child.pid] = child
        return child, notes, log

    def _follow(
        self,
        order: Order,
        child: subprocess.Popen[bytes],
        notes: int,
        stages: _Stages,
        until_s: float,
    ) -> int:
        """Hear the process's progress until it listens; return its port."""
        for note in _notes(notes):
            if order.cancelled.is_set():
                raise StartError(f"{order.model}: the start was given up")
            if time.monotonic() > until_s:
                raise StartError(f"{order.model}: not ready after {order.deadline_s:g} s")
            if "failed" in note:
                raise StartError(note["failed"], out_of_memory=note["out_of_memory"])
            if "port" in note:
                stages.end()
                return int(note["port"])
            if "stage" in note:
                stages.hear(note["stage"], note["share"])
        raise StartError(f"{order.model}: the engine's process ended with {child.wait()}")

    # Ending

    def _end(self, pid: int, grace_s: float) -> None:
        """End a process and all of its group."""
        for sent, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
            if sent is signal.SIGTERM and not grace_s:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, sent)
            if self._gone(pid, wait_s):
                return
        raise EngineError(f"process {pid} of an emulated engine is still there after SIGKILL")

    def _gone(self, pid: int, wait_s: float) -> bool:
        with self._lock:
            child = self._children.get(pid)
        try:
            if child is not None:
                child.wait(wait_s)
            else:
                psutil.Process(pid).wait(wait_s)
        except (subprocess.TimeoutExpired, psutil.TimeoutExpired):
            return False
        except psutil.NoSuchProcess:
            pass
        with self._lock:
            self._children.pop(pid, None)
        return True

    def _reap(self, pid: int) -> None:
        """Collect a child that has ended by itself."""
        with self._lock:
            child = self._children.pop(pid, None)
        if child is not None:
            child.wait()

    def _left_behind(self) -> Iterator[tuple[int, str]]:
        """Running engines whose specification lies in this manager's folder."""
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if _SERVER in words and "--spec" in words[:-1]:
                path = Path(words[words.index("--spec") + 1])
                if path.parent == self.folder:
                    yield process.pid, path.stem


class _Stages:
    """Times what the process says of its start."""

    def __init__(self, begun_s: float, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._begun_s, self._progress, self._stage = begun_s, progress, ""

    def hear(self, stage: str, share: float) -> None:
        if stage != self._stage:
            self.end()
            self._stage = stage
        if self._progress is not None:
            self._progress(stage, share)

    def end(self) -> None:
        now_s = time.monotonic()
        if self._stage:
            self.seconds[self._stage] = now_s - self._begun_s
            self._begun_s = now_s


def _notes(descriptor: int) -> Iterator[dict[str, Any]]:
    """Each line that comes, and an empty note now and then; ends when nobody writes any more."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            yield {}
            if selector.select(LOOK_S):
                if not (data := os.read(descriptor, 65536)):
                    return
                *lines, rest = (rest + data).split(b"\n")
                yield from map(json.loads, lines)


def _as_json(spec: Spec) -> dict[str, Any]:
    kind = "generate" if isinstance(spec.engine, Generate) else "infer"
    values = dataclasses.asdict(spec)
    return {**values, "engine": {"kind": kind, **values["engine"]}}


def _same(process: Process) -> bool:
    """It still runs, and is not another one with the same number."""
    try:
        found = psutil.Process(process.pid)
        same = abs(found.create_time() - process.started_s) < 1.0
        return same and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _canary(engine: Engine, deadline_s: float) -> None:
    """One small request. Raises EngineError if it is not answered."""
    if engine.api == "openai":
        body: dict[str, Any] = {"model": engine.name, "prompt": "ping", "max_tokens": 1}
        _ask(engine, "POST", "/v1/completions", deadline_s, body)
    else:
        tensor = {"name": "input", "shape": [1, 1], "datatype": "FP32", "data": [0]}
        path = f"/v2/models/{engine.name}/infer"
        _ask(engine, "POST", path, deadline_s, {"inputs": [tensor]})


def _work_done(engine: Engine, deadline_s: float) -> float:
    """A counter that grows while the engine makes progress."""
    name = "vllm:generation_tokens_total" if engine.api == "openai" else "nv_inference_count"
    text = _ask(engine, "GET", "/metrics", deadline_s)
    found = re.search(rf"^{name}{{.*}} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def _ask(
    engine: Engine, method: str, path: str, deadline_s: float, body: dict[str, Any] | None = None
) -> Any:
    """Send one request on a connection of its own; return the JSON or text of the answer."""
    address = urlsplit(engine.url)
    connection = http.client.HTTPConnection(
        address.hostname or "", address.port, timeout=max(0.05, deadline_s)
    )
    try:
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"content-type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
    except TimeoutError:
        raise EngineError(f"{path} of {engine.instance}: no answer in {deadline_s:g} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise EngineError(
            f"{path} of {engine.instance}: {error or type(error).__name__}"
        ) from error
    finally:
        connection.close()
    if answer.status != 200:
        raise EngineError(f"{path} of {engine.instance}: {answer.status} {text[:200]}")
    kind = answer.headers.get_content_type()
    return json.loads(text) if kind == "application/json" else text


def _last_lines(log: Path) -> str:
    with contextlib.suppress(OSError):
        return "\n".join(
            log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        )
    return ""
