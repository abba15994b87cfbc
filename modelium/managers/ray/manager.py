"""Ray Serve: an application a model instance, on the GPUs it is given.

    manager = RayManager()
    manager.load_model("my-model", "/models/my-model", gpu_id=0)
    manager.get_model_endpoint("my-model")      # http://127.0.0.1:6402/my-model~...
    manager.unload_model("my-model")

A folder with a model.py is served by the class in it, others as language models of transformers.
Without `address` a Ray of its own is started. Ray is not imported: it has an environment of its
own (`make engines`).
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import re
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from os import getuid
from pathlib import Path
from typing import Any

import psutil

from modelium.managers import environment as environments
from modelium.managers.causes import cause, final, no_memory
from modelium.managers.engine import Engine, EngineError, Order, Progress, StartError
from modelium.managers.hang_detector import Stalls
from modelium.managers.legacy_api import ByName
from modelium.managers.ports import Ports
from modelium.managers.process import Processes, tail
from modelium.managers.ray import order as ray_order
from modelium.managers.ray.head import Ray
from modelium.managers.starting import LOOK_S, Start
from modelium.managers.vllm.http import NoAnswerError, ask, canary

CALL_S = 60.0
"""Ray answers a call within this time, also on a busy machine."""
ADOPT_S = 20.0
ASK_S = 5.0
GONE_S = 20.0
"""An application of which all processes have ended is forgotten within this time."""
WATCH_S = 0.1
RESTART_S = 60.0
"""Ray brings a replica back in 5 s and the time that the model takes to load."""
_COLOURS = re.compile(r"\x1b\[[\d;]*m")
_WRAPPED = "RuntimeError: Traceback (most recent call last):"


class RayManager(ByName):
    """Deploys and deletes applications of Ray Serve. Safe to call from several threads."""

    runtime = "ray"

    def __init__(
        self,
        *,
        address: str | None = None,
        environment: Path | None = None,
        folder: Path | None = None,
        host: str = "127.0.0.1",
        base_port: int = 6400,
        env: Mapping[str, str] | None = None,
        stall_s: float = 60.0,
    ) -> None:
        """With `address` (host:port) a cluster that runs already is used.

        Its nodes have to see the models' folders and Modelium's own. Serve is started there, on the
        first free port from `base_port`, and ended with the last model, unless it has one. Without
        `address` a Ray of ours is started, on ports from `base_port` upwards. `environment` is the
        folder of the Python environment that holds Ray, or its program. `folder` keeps logs and
        tells one executor's engines from another's; `env` is added to Ray's environment. A language
        model that makes no token for `stall_s` while it is asked for some is in trouble.
        Raises ConfigError.
        """
        super().__init__()
        program = environments.find("ray", "ray", environment)
        default = Path(tempfile.gettempdir()) / f"modelium-ray-{getuid()}"
        processes = Processes(folder or default, self.runtime)
        self._processes = processes
        self._ray = Ray(processes, program, address, Ports(host, base_port), host, env or {})
        self._owner = hashlib.sha256(str(processes.folder).encode()).hexdigest()[:6]
        self._stall_s = stall_s
        self._lock = threading.Lock()
        self._stalls = Stalls()
        self._dead_since_s: dict[str, float] = {}
        """Of an instance whose replica has ended: when that was seen."""
        atexit.register(self.close)

    def in_flight(self, engine: Engine) -> bool:
        """Whether it works on requests, by its own count."""
        return bool(self._health(engine, ASK_S)["busy"])

    # The interface of `modelium.managers.engine.Manager`

    def start(self, order: Order, progress: Progress | None = None) -> Engine:
        if order.path is None or not order.path.is_dir():
            raise StartError(f"{order.model}: its files are not at {order.path}", final=True)
        start = Start(replace(order, path=order.path.absolute()), progress)
        wanted = ray_order.read(start.order, ours=self._ray.is_ours)
        app = self._app(order.instance)
        with self._lock:
            if app in self._ray.members:
                raise StartError(f"{order.instance} is loaded already")
            self._ray.members.add(app)
        try:
            return self._start(start, app, wanted)
        except BaseException as error:
            with contextlib.suppress(EngineError):
                self._remove(app, 0.0)
            self._ray.members.discard(app)
            if isinstance(error, EngineError):
                raise StartError(f"{order.model}: {error}", log=self._told()) from error
            raise

    def stop(self, engine: Engine, grace_s: float = 10.0) -> None:
        app = engine.extra["app"]
        self._stalls.over(engine.instance)
        self._dead_since_s.pop(engine.instance, None)
        self._remove(app, grace_s)
        self._ray.members.discard(app)

    def sleep(self, engine: Engine, level: int, deadline_s: float = 60.0) -> None:
        raise EngineError(f"{engine.instance}: Ray Serve cannot put models to sleep")

    def wake(self, engine: Engine, deadline_s: float = 120.0) -> None:
        raise EngineError(f"{engine.instance}: Ray Serve's models do not sleep")

    def trouble(self, engine: Engine, deadline_s: float = 5.0) -> str:
        """As the interface says; a replica that died has `RESTART_S`, as Ray starts another one.

        Its requests wait in Ray meanwhile; they would wait for ever if it were deleted.
        One that only makes nothing has `stall_s` over several calls.
        """
        if not self._ray.runs():
            return "Ray's head has ended"
        try:
            return self._look(engine, deadline_s)
        except EngineError as error:
            return self._restarting(engine) if self._is_dead(engine) else str(error)

    def adopt(self, engine: Engine) -> bool:
        try:
            app = engine.extra["app"]
            if not self._ray.adopt() or app != self._app(engine.instance):
                return False
            if engine.url != f"{self._at(self._ray.ensure(CALL_S))}/{app}":
                return False
            if self._look(engine, ADOPT_S):
                return False
        except (EngineError, KeyError):
            return False
        self._ray.members.add(app)
        return True

    def sweep(self, known: Iterable[Engine]) -> list[str]:
        """As the interface says: applications that nobody knows, and a Ray that has no others."""
        keep = self._ray.members | {engine.extra.get("app", "") for engine in known}
        ended = []
        if self._ray.adopt():
            with contextlib.suppress(EngineError):
                for app in self._ray.states(CALL_S):
                    if app.endswith(f"~{self._owner}") and app not in keep:
                        self._remove(app, 0.0)
                        ended.append(f"Ray's application {app}")
        return [*ended, *(f"Ray's {name}" for name in self._processes.sweep(()))]

    def close(self) -> None:
        atexit.unregister(self.close)
        self._ray.close()

    # Starting

    def _start(self, start: Start, app: str, wanted: ray_order.Wanted) -> Engine:
        order = start.order
        start.begin("ray")
        port = start.watch(lambda: self._ray.ensure(start.left_s, start.go_on))
        start.begin("weights")
        given = {"model": wanted.model, "deployment": wanted.deployment, "actor": wanted.actor}
        start.watch(lambda: self._ray.ask("deploy", CALL_S, name=app, **given))
        self._until_running(start, app)
        start.begin("canary")
        plain = {"plain": True} if wanted.plain else {}
        engine = Engine(
            instance=order.instance,
            model=order.model,
            runtime=self.runtime,
            url=f"{self._at(port)}/{app}",
            api="openai",
            name=order.model,
            devices=order.devices,
            uuids=order.uuids,
            log=str(self._ray.log or ""),
            extra={"app": app, "pids": [], **plain},
        )
        start.watch(lambda: self._greet(engine, start.left_s))
        start.begin("")
        return replace(engine, stages=start.seconds)

    def _until_running(self, start: Start, app: str) -> None:
        """Follow Ray's own states. Raises StartError with what a constructor raised."""
        while True:
            told = start.watch(lambda: self._ray.states(CALL_S)).get(app, {})
            state, said = told.get("state"), told.get("said", "")
            if state == "RUNNING":
                return
            if state in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise _failed(start.order, said)
            start.go_on()
            time.sleep(LOOK_S)

    def _greet(self, engine: Engine, deadline_s: float) -> None:
        """A first small request; a user's own class is not asked what nobody knows it can answer.

        Serve's proxy hears of a new application a moment later than its state tells.
        """
        until_s = time.monotonic() + deadline_s
        while True:
            try:
                self._health(engine, deadline_s)
                break
            except NoAnswerError:
                raise
            except EngineError:
                if time.monotonic() > until_s:
                    raise
                time.sleep(WATCH_S)
        if not engine.extra.get("plain"):
            canary(engine, deadline_s)

    # Watching

    def _look(self, engine: Engine, deadline_s: float) -> str:
        """Why it cannot serve; raises EngineError if it does not answer at all."""
        until_s = time.monotonic() + deadline_s
        health = self._health(engine, deadline_s)
        if engine.extra.get("plain"):
            return ""
        if health["busy"]:
            return self._stalled(engine, int(health["work"]))
        try:
            canary(engine, until_s - time.monotonic())
        except NoAnswerError:  # others may have come before it
            health = self._health(engine, deadline_s)
            return self._stalled(engine, int(health["work"]))
        self._stalls.over(engine.instance)
        return ""

    def _is_dead(self, engine: Engine) -> bool:
        """Whether the replica that answered last has ended, as far as that can be known."""
        pids = engine.extra["pids"]
        known = {one.pid for one in self._ray.replicas(engine.extra["app"])}
        return self._ray.is_ours and bool(pids) and not known.intersection(pids)

    def _restarting(self, engine: Engine) -> str:
        since_s = self._dead_since_s.setdefault(engine.instance, time.monotonic())
        late = time.monotonic() - since_s > RESTART_S
        return f"its replica ended and did not come back in {RESTART_S:g} s" if late else ""

    def _stalled(self, engine: Engine, work: int) -> str:
        still_s = self._stalls.still_s(engine.instance, work)
        return f"it made no token for {still_s:.0f} s" if still_s >= self._stall_s else ""

    def _health(self, engine: Engine, deadline_s: float) -> Any:
        """What its replica says of itself; the engine knows its process from now on."""
        health = ask(engine, "/health", deadline_s)
        assert isinstance(engine.extra, dict), "plain data"
        engine.extra["pids"] = [health["pid"]]
        self._dead_since_s.pop(engine.instance, None)
        return health

    # Ending

    def _remove(self, app: str, grace_s: float) -> None:
        """Delete it and return when neither Ray nor this machine has anything of it.

        With a head that has ended, all that it started is ended, too.
        """
        if not self._ray.runs():
            self._ray.clear()
            return
        until_s = time.monotonic() + grace_s
        if app in self._ray.states(CALL_S):
            self._ray.ask("delete", CALL_S, name=app)
        while time.monotonic() < until_s + GONE_S:
            if time.monotonic() >= until_s and self._ray.is_ours:
                for one in self._ray.replicas(app):
                    with contextlib.suppress(psutil.Error):
                        one.kill()
            if app not in self._ray.states(CALL_S) and not self._ray.replicas(app):
                return
            time.sleep(WATCH_S)
        raise EngineError(f"Ray did not delete {app} in {grace_s + GONE_S:g} s")

    def _app(self, instance: str) -> str:
        """A name that needs no quoting in addresses, and that says whose it is."""
        plain = re.sub(r"[^\w.-]", "-", instance, flags=re.ASCII)[:60]
        return f"{plain}-{hashlib.sha256(instance.encode()).hexdigest()[:8]}~{self._owner}"

    def _at(self, port: int) -> str:
        host = self._ray.host
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def _told(self) -> str:
        return tail(self._ray.log) if self._ray.log is not None else ""


def _failed(order: Order, said: str) -> StartError:
    """What Ray says about a constructor that raised, in one line.

    Ray wraps the traceback of the constructor as the message of another error.
    """
    said = "\n".join(line.strip() for line in _COLOURS.sub("", said).splitlines())
    inner = said.partition(_WRAPPED)[2] or said
    raised = cause(inner)
    why = raised or said.rpartition("\n")[2][-300:] or "Ray did not say why"
    why, short = why.replace(str(order.path), order.model), no_memory(inner)
    return StartError(
        f"{order.model}: {why}",
        log=said[-5000:],
        out_of_memory=short,
        final=final(raised) and not short,
    )
