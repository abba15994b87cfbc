"""A real Ray for tests: how it is found, and models that do what they are told."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from modelium.errors import ConfigError
from modelium.managers import environment
from modelium.managers.engine import Engine, Order
from modelium.managers.process import MARK, Processes
from modelium.managers.ray.manager import RayManager

DEADLINE_S = 400.0
"""Whatever a test waits for has come by then, on the slowest machine."""
PORTS_FROM = 20_000 + os.getpid() % 1000 * 10
"""Of this process: below those that systems give to anybody, Ray's own parts among them."""
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

DOUBLE = """
import os, time

class Double:
    def __init__(self, path, mode=""):
        self.path = path
        open(os.path.join(path, "began"), "w").close()
        if mode == "raise":
            raise ValueError("these are no weights")
        if mode == "memory":
            raise RuntimeError("CUDA out of memory (pretended)")
        if mode == "hang":
            time.sleep(10_000)

    def __call__(self, body):
        if body.get("wait"):
            open(os.path.join(self.path, "waits"), "w").close()
            while not os.path.exists(os.path.join(self.path, body["wait"])):
                time.sleep(0.01)
        if body.get("odd"):
            return {"no": {1, 2}}
        return {"y": [2 * x for x in body["x"]], "gpu": os.environ["CUDA_VISIBLE_DEVICES"],
                "pid": os.getpid()}
"""


def needs_ray() -> pytest.MarkDecorator:
    """Skips, saying how to get it, where Ray is not installed."""
    try:
        environment.find("ray", "ray")
    except ConfigError as error:
        return pytest.mark.skipif(True, reason=str(error))
    return pytest.mark.skipif(False, reason="Ray is here")


def manager(folder: Path, **more: Any) -> RayManager:
    """A manager whose Ray belongs to nobody else."""
    return RayManager(folder=folder, base_port=PORTS_FROM, env=ONE_THREAD, **more)


def double(folder: Path) -> Path:
    """A model that doubles numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(DOUBLE)
    return folder


def order(instance: str, path: Path, mode: str = "", device: int = 0, **more: Any) -> Order:
    """An instance of `double`."""
    settings = {"args": {"mode": mode}, **more.pop("settings", {})}
    more = {"deadline_s": DEADLINE_S, **more}
    return Order(instance, instance.partition("#")[0], path, (device,), settings=settings, **more)


def post(engine: Engine, path: str, body: Any, timeout_s: float = DEADLINE_S) -> tuple[int, Any]:
    """Status and answer of one request."""
    address = urlsplit(engine.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout_s)
    try:
        text = body if isinstance(body, str) else json.dumps(body)
        connection.request("POST", address.path + path, text)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def processes_of(logs: Path) -> list[psutil.Process]:
    """All processes of the Ray whose logs are there, without zombies."""
    place = str(Processes(logs, "ray").scratch("x").parent)
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if one.status() != psutil.STATUS_ZOMBIE and any(
                place in word for word in [*one.cmdline(), one.cwd(), one.environ().get(MARK, "")]
            ):
                found.append(one)
    return found
