"""One failing test stays one: what it leaves hurts no other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

HERE = Path(__file__).parent
FAILS = """
import os, socket, subprocess
from pathlib import Path

def test_fails():
    child = subprocess.Popen(["sleep", "600"], stdout=subprocess.PIPE, start_new_session=True)
    Path(os.environ["TOLD"]).write_text(str(child.pid))
    line = socket.socket()
    assert child.poll() == "over"
"""
INNOCENT = """
import gc

def test_innocent():
    gc.collect()
"""


def test_what_a_failing_test_has_started_ends_with_its_module(tmp_path: Path) -> None:
    shutil.copy(HERE / "conftest.py", tmp_path)
    shutil.copy(HERE.parent / "pyproject.toml", tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text(FAILS)
    (tmp_path / "tests" / "test_b.py").write_text(INNOCENT)
    told = tmp_path / "told"
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "TOLD": str(told)},
    )  # fmt: skip
    assert "1 failed, 1 passed" in ended.stdout, ended.stdout + ended.stderr
    assert not psutil.pid_exists(int(told.read_text()))
