"""A Ray that nobody waits for: its executor has died, or the start that it is for is given up."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from modelium.managers.engine import Engine, StartError
from tests.live.running import until
from tests.managers import ray_house
from tests.managers.ray_house import (
    DEADLINE_S,
    double,
    manager,
    needs_ray,
    order,
    post,
    processes_of,
)

pytestmark = [pytest.mark.engines, needs_ray()]

LATER = """
import json, os, signal, sys
from pathlib import Path
from tests.managers import ray_house
logs, path, out = map(Path, sys.argv[1:])
made = ray_house.manager(logs)
told = [made.start(ray_house.order(name, path)).as_dict() for name in ("kept#1", "lost#1")]
out.write_text(json.dumps(told))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_later_self_adopts_what_it_knows_and_ends_the_rest(tmp_path: Path) -> None:
    logs, path, out = tmp_path / "logs", double(tmp_path / "double"), tmp_path / "out"
    words = [sys.executable, "-c", LATER, str(logs), str(path), str(out)]
    later = None
    try:
        root = Path(ray_house.__file__).parents[2]
        subprocess.run(words, check=False, timeout=DEADLINE_S, cwd=root)
        kept, lost = (Engine.from_dict(one) for one in json.loads(out.read_text()))
        later = manager(logs)
        assert later.adopt(kept)
        assert not later.adopt(Engine.from_dict({**kept.as_dict(), "instance": "other#1"}))
        gone = lost.extra["pids"]
        assert [told.split()[-1] for told in later.sweep([kept])] == [lost.extra["app"]]
        left = [psutil.Process(pid) for pid in gone if psutil.pid_exists(pid)]
        assert psutil.wait_procs(left, timeout=DEADLINE_S)[1] == []
        assert post(kept, "/", {"x": [3]})[1]["y"] == [6]
        later.close()
        assert post(kept, "/", {"x": [3]})[1]["y"] == [6], "close leaves engines that run"
        assert later.trouble(kept) == ""

        head = psutil.Process(later._ray.process.pid)  # type: ignore[union-attr]
        head.kill()
        until(lambda: "head has ended" in later.trouble(kept))
        again = later.start(order("again#1", path))
        later.stop(kept, 0.0)
        assert post(again, "/", {"x": [5]})[1]["y"] == [10]
        later.stop(again, 5.0)
        later.close()
        assert processes_of(logs) == []

        third = manager(logs)
        assert not third.adopt(again)
        assert third.sweep([]) == []
        third.close()
    finally:
        if later is not None:
            later.close()
        for one in processes_of(logs):
            one.kill()


def test_a_sweep_ends_a_ray_that_nobody_knows(tmp_path: Path) -> None:
    logs, path, out = tmp_path / "logs", double(tmp_path / "double"), tmp_path / "out"
    words = [sys.executable, "-c", LATER, str(logs), str(path), str(out)]
    later = manager(logs)
    try:
        root = Path(ray_house.__file__).parents[2]
        subprocess.run(words, check=False, timeout=DEADLINE_S, cwd=root)
        assert len(later.sweep([])) == 2
        later.close()
        assert processes_of(logs) == []
    finally:
        for one in processes_of(logs):
            one.kill()


def test_a_start_that_is_given_up_while_it_waits_starts_no_ray(tmp_path: Path) -> None:
    made, cancelled = manager(tmp_path / "logs"), threading.Event()
    given = replace(order("m#1", double(tmp_path / "double")), cancelled=cancelled)
    try:
        with ThreadPoolExecutor() as pool:
            with made._ray._lock:  # somebody asks Ray something meanwhile
                started = pool.submit(made.start, given)
                cancelled.set()
                with pytest.raises(TimeoutError):
                    started.result(1.0)
            with pytest.raises(StartError, match="the start was given up"):
                started.result()
        made.close()  # waits for what asks
        assert made._ray.log is not None
        assert not made._ray.log.exists(), "no head was ever started"
    finally:
        made.close()
        for one in processes_of(tmp_path / "logs"):
            one.kill()
