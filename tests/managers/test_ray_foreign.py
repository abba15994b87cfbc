"""A Ray that somebody else runs: models come and go on it, and it stays as it was."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from modelium.managers import environment
from modelium.managers.engine import StartError
from modelium.managers.ports import Ports
from modelium.managers.ray.head import COMMON, LOCAL
from modelium.managers.ray.manager import RayManager
from tests.live.running import until
from tests.managers.ray_house import (
    DEADLINE_S,
    ONE_THREAD,
    PORTS_FROM,
    double,
    needs_ray,
    order,
    post,
)
from tests.managers.vllm_house import running

pytestmark = [pytest.mark.engines, needs_ray()]

HOST = "127.0.0.1"
STARTED = "Ray runtime started"
ACTORS = """
import json, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
seen = ray._private.state.actors()
print(json.dumps([one["ActorClassName"] for one in seen.values() if one["State"] != "DEAD"]))
"""
THEIRS = """
import sys, ray
from ray import serve
ray.init(address=sys.argv[1], log_to_driver=False, namespace="serve")
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})

@serve.deployment(ray_actor_options={"num_cpus": 0})
class Theirs:
    async def __call__(self, request):
        return "theirs"

serve.run(Theirs.bind(), name="theirs", route_prefix="/theirs")
"""


@dataclass
class Foreign:
    """A head that was started by hand."""

    process: psutil.Process
    address: str
    environment: dict[str, str]
    program: Path
    ports: Ports

    def told(self, code: str, *words: str) -> str:
        """What a program in Ray's environment prints at its end."""
        command = [str(self.program.parent / "python"), "-c", code, self.address, *words]
        made = subprocess.run(
            command,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert made.returncode == 0, made.stderr[-3000:]
        return (made.stdout.strip().splitlines() or [""])[-1]

    def actors(self) -> list[str]:
        """Classes of the actors that live on it."""
        found: list[str] = json.loads(self.told(ACTORS))
        return found


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Foreign]:
    program, ports = environment.find("ray", "ray"), Ports(HOST, PORTS_FROM)
    place = Path("/tmp") / f"modelium-foreign-{os.getpid()}"  # its sockets need a short path
    own = {**environment.variables(program), **COMMON, **LOCAL, **ONE_THREAD}
    head, clients = ports.take(), ports.take()
    command = [str(program), "start", "--head", "--block", f"--port={head}"]
    command += [f"--node-ip-address={HOST}", f"--ray-client-server-port={clients}"]
    command += ["--min-worker-port=0", "--max-worker-port=0", "--metrics-export-port=0"]
    command += ["--dashboard-agent-listen-port=0", "--runtime-env-agent-port=0", "--num-cpus=2"]
    command += ["--include-dashboard=false", "--disable-usage-stats", "--num-gpus=0"]
    command += [f"--object-store-memory={100 << 20}", f"--temp-dir={place}"]
    log = tmp_path / "head.log"
    with log.open("wb") as out:
        child = subprocess.Popen(command, env=own, stdout=out, stderr=out, start_new_session=True)
    process = psutil.Process(child.pid)
    try:
        until(lambda: child.poll() is not None or STARTED in log.read_text())
        assert child.poll() is None, log.read_text()
        yield Foreign(process, f"{HOST}:{head}", own, program, ports)
    finally:
        members = process.children(recursive=True) if process.is_running() else []
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:  # Ray takes its time with actors that live
            child.kill()
            child.wait()
        for one in psutil.wait_procs(members, timeout=20.0)[1]:
            with suppress(psutil.Error):
                one.kill()
        subprocess.run(["rm", "-rf", str(place)], check=True)


def theirs(foreign: Foreign, folder: Path) -> RayManager:
    """A manager that uses the foreign Ray."""
    env = {**ONE_THREAD, **LOCAL}  # its cluster is on the loopback, which Ray leaves by default
    return RayManager(address=foreign.address, folder=folder, base_port=PORTS_FROM, env=env)


def test_a_ray_without_serve_is_left_without_it(foreign: Foreign, tmp_path: Path) -> None:
    assert foreign.actors() == []
    made = theirs(foreign, tmp_path / "logs")
    taken = made._ray._ports.take()
    made._ray._ports.give(taken)
    free = Ports._free
    with pytest.MonkeyPatch.context() as patched, socket.create_server((HOST, taken)):
        patched.setattr(Ports, "_free", lambda self, port: port == taken or free(self, port))
        with pytest.raises(StartError, match=f"bind to address '{HOST}:{taken}'"):
            made.load_model("double", double(tmp_path / "double"))
    engine = made.load_model("double", double(tmp_path / "double"), args={"mode": ""})
    status, told = post(engine, "/", {"x": [4]})
    assert (status, told["y"], told["gpu"]) == (200, [8], "0")
    assert made.trouble(engine) == ""
    served = psutil.Process(told["pid"])
    assert foreign.process in served.parents(), "on their Ray, not on one of ours"
    with pytest.raises(StartError, match="these are no weights"):
        made.start(order("broken#1", tmp_path / "double", "raise"))
    made.close()
    assert post(engine, "/", {"x": [1]})[1]["y"] == [2], "close leaves what is loaded"

    later = theirs(foreign, tmp_path / "logs")
    assert later.adopt(engine)
    later.stop(engine)
    assert running([served]) == []
    later.close()
    assert foreign.actors() == [], "Serve was ours, though an earlier self's"
    assert foreign.process.status() != psutil.STATUS_ZOMBIE


def test_serve_and_applications_of_others_stay(foreign: Foreign, tmp_path: Path) -> None:
    port = foreign.ports.take()
    foreign.told(THEIRS, str(port))
    before = sorted(foreign.actors())
    made = theirs(foreign, tmp_path / "logs")
    engine = made.load_model("double", double(tmp_path / "double"))
    assert engine.url.startswith(f"http://{HOST}:{port}/double")
    assert post(engine, "/", {"x": [3]})[1]["y"] == [6]
    assert made.sweep([]) == [], "theirs is nobody's to end"
    made.unload_model("double")
    made.close()
    assert sorted(foreign.actors()) == before
    assert "theirs" in foreign.told(
        "import sys, urllib.request as u; print(u.urlopen(sys.argv[2]).read().decode())",
        f"http://{HOST}:{port}/theirs",
    )


def test_an_address_without_a_ray_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelium.managers.ray.head.STARTED_S", 3.0)
    made = RayManager(address=f"{HOST}:9", folder=tmp_path / "logs", env=LOCAL)
    with pytest.raises(StartError, match=r"double: no Ray answers at 127\.0\.0\.1:9: .* in 3 s"):
        made.load_model("double", double(tmp_path / "double"))
    made.close()
    assert not list(made._processes.left(()))
