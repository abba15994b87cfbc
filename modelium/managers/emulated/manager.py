"""Emulated engines: real processes that answer in a profile's time and need no GPU.

    engine = EmulatedManager().start(Order("llama-8b#1", "llama-8b"))

For demonstrations, load tests, and clusters of pretended GPUs on one machine. What an engine plays
is in `Order.settings`, in the words of `modelium.managers.emulated.server.spec`; without an
`engine` there, it is a language model of 8 billion parameters on an H100.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from modelium.errors import ConfigError
from modelium.managers.emulated.server.spec import Generate, Spec, parse
from modelium.managers.emulated.state_file import EndedError, Notes
from modelium.managers.engine import Engine, EngineError, Order, Progress, StartError
from modelium.managers.identity import Process, runs
from modelium.managers.process import Processes, tail
from modelium.managers.vllm.http import ask, is_sleeping
from modelium.storage.permissions import write_private

_SERVER = "modelium.managers.emulated.process"
ENDED_S = 5.0
"""A process that has closed its end of the pipe ends within this time."""

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
"""What `Order.settings` does not say; times are assumed, of the order that vLLM users report."""


FIRST = "first_compile"
"""Among the stages: what `compile` takes at a model's first load, when nothing is in the cache."""


class EmulatedManager:
    """Starts and ends emulated engines, one process each. Safe to call from several threads."""

    runtime = "emulated"

    def __init__(
        self, *, folder: Path | None = None, speed: float = 1.0, faults: bool = False
    ) -> None:
        """`folder` keeps specifications and logs; `speed` divides all times (inf: no waiting).

        With `faults`, engines serve POST /faults: for tests only. Raises ConfigError if the folder
        cannot be made.
        """
        default = Path(tempfile.gettempdir()) / f"modelium-emulated-{os.getuid()}"
        self._processes = Processes(folder or default, self.runtime)
        self._speed, self._faults = speed, faults
        self._compiled: set[str] = set()
        """Models that have been loaded: their graphs are in the cache from then on."""

    # The interface of `modelium.managers.engine.Manager`

    def start(self, order: Order, progress: Progress | None = None) -> Engine:
        until_s = time.monotonic() + order.deadline_s
        spec = self._spec(order)
        self._processes.claim(order.instance)
        process = None
        log = self._processes.log(order.instance)
        try:
            with Notes() as notes:
                process = self._spawn(order.instance, spec, notes)
                engine = Engine(
                    instance=order.instance,
                    model=order.model,
                    runtime=self.runtime,
                    url=f"http://{spec.host}:{notes.follow(order, until_s, progress)}",
                    api="openai" if isinstance(spec.engine, Generate) else "kserve",
                    name=spec.model,
                    devices=order.devices,
                    uuids=order.uuids,
                    process=process,
                    log=str(log),
                    stages=notes.seconds,
                    extra={"asleep_bytes": spec.asleep_bytes} if spec.asleep_bytes else {},
                )
            _canary(engine, until_s - time.monotonic())
        except BaseException as error:
            if isinstance(error, EndedError):
                status = self._processes.wait(order.instance, ENDED_S)
            self._processes.end(order.instance, process, 0.0)
            self._processes.release(order.instance)
            if isinstance(error, StartError):
                error.log = tail(log)
            elif isinstance(error, EndedError):
                why = f"{order.model}: the engine's process ended with status {status}"
                raise StartError(why, log=tail(log)) from error
            elif isinstance(error, EngineError | OSError):
                raise StartError(f"{order.model}: {error}", log=tail(log)) from error
            raise
        self._compiled.add(order.model)
        return engine

    def stop(self, engine: Engine, grace_s: float = 10.0) -> None:
        self._processes.end(engine.instance, engine.process, grace_s)
        self._processes.release(engine.instance)

    def sleep(self, engine: Engine, level: int, deadline_s: float = 60.0) -> None:
        until_s = time.monotonic() + deadline_s
        ask(engine, f"/sleep?level={level}", deadline_s, post=True)
        if not is_sleeping(engine, until_s - time.monotonic()):
            raise EngineError(f"{engine.instance} was told to sleep and says that it is awake")

    def wake(self, engine: Engine, deadline_s: float = 120.0) -> None:
        until_s = time.monotonic() + deadline_s
        ask(engine, "/wake_up", deadline_s, post=True)
        _canary(engine, until_s - time.monotonic())

    def trouble(self, engine: Engine, deadline_s: float = 5.0) -> str:
        if engine.process is not None and not runs(engine.process):
            return "its process has ended"
        until_s = time.monotonic() + deadline_s
        try:
            if is_sleeping(engine, deadline_s):
                return ""
            before = _work_done(engine, until_s - time.monotonic())
            try:
                _canary(engine, until_s - time.monotonic())
            except EngineError as error:
                return "" if _work_done(engine, deadline_s) > before else str(error)
        except EngineError as error:
            return str(error)
        return ""

    def adopt(self, engine: Engine) -> bool:
        if engine.process is None or self.trouble(engine):
            return False
        self._processes.claim(engine.instance)
        return True

    def sweep(self, known: Iterable[Engine]) -> list[str]:
        ended = self._processes.sweep(engine.instance for engine in known)
        return [f"emulated engine of {instance}" for instance in ended]

    def close(self) -> None:
        """Nothing is held."""

    # Starting

    def _spec(self, order: Order) -> Spec:
        given = {**DEFAULTS, "speed": self._speed, **order.settings, "model": order.model}
        if isinstance(given["stages"], Mapping) and FIRST in given["stages"]:
            stages = dict(given["stages"])
            first_s = stages.pop(FIRST)
            if order.model not in self._compiled:
                stages["compile"] = first_s
            given["stages"] = stages
        try:
            return parse(given)
        except ConfigError as error:
            why = f"{order.model}: settings of the emulation: {error}"
            raise StartError(why, final=True) from error

    def _spawn(self, instance: str, spec: Spec, notes: Notes) -> Process:
        """Start the process; it reads what it is from a file beside its log."""
        self._processes.end(instance, None, 0.0)  # what an earlier self left
        path = self._processes.log(instance).with_suffix(".json")
        write_private(path, json.dumps(_as_json(spec)))
        command = [sys.executable, "-P", "-m", _SERVER, "--spec", str(path)]
        command += ["--notify", str(notes.writing), *(["--faults"] if self._faults else [])]
        process = self._processes.spawn(instance, command, os.environ, (notes.writing,))
        notes.started()
        return process


def _as_json(spec: Spec) -> dict[str, Any]:
    kind = "generate" if isinstance(spec.engine, Generate) else "infer"
    values = dataclasses.asdict(spec)
    return {**values, "engine": {"kind": kind, **values["engine"]}}


def _canary(engine: Engine, deadline_s: float) -> None:
    """One small request. Raises EngineError if it is not answered."""
    if engine.api == "openai":
        body: dict[str, Any] = {"model": engine.name, "prompt": "ping", "max_tokens": 1}
        ask(engine, "/v1/completions", deadline_s, body=body)
    else:
        tensor = {"name": "input", "shape": [1, 1], "datatype": "FP32", "data": [0]}
        path = f"/v2/models/{quote(engine.name)}/infer"
        ask(engine, path, deadline_s, body={"inputs": [tensor]})


def _work_done(engine: Engine, deadline_s: float) -> float:
    """A counter that grows while the engine makes progress."""
    name = "vllm:generation_tokens_total" if engine.api == "openai" else "nv_inference_count"
    found = re.search(rf"^{name}{{.*}} (\S+)$", ask(engine, "/metrics", deadline_s), re.MULTILINE)
    return float(found[1]) if found else 0.0
