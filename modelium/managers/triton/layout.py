"""Where a Triton server is installed, and how it is started.

Two layouts are known: NVIDIA's own (a folder with bin/tritonserver and backends/), and the wheel
`nvidia-pytriton`, which carries a server with the Python backend alone inside a Python environment.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from modelium.errors import ConfigError
from modelium.managers import environment as environments

_WHEEL = "lib/python3*/site-packages/pytriton/tritonserver"
_PYTHON_BACKEND = ("libtriton_python.so", "triton_python_backend_utils.py")
_ASK_S = 60.0
_ABOUT = (
    "import sys, sysconfig;"
    "print('%d.%d' % sys.version_info[:2]); print(sysconfig.get_config_var('LIBDIR') or '')"
)
DRIVER = Path("/proc/driver/nvidia/version")
"""There where NVIDIA's driver is loaded."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One installed server."""

    server: Path
    """The program."""
    python: Path
    """The Python whose packages models on the Python backend see."""
    backends: Path | None
    """Folder of backends; None for the wheel, whose Python backend has to be laid out first."""
    libraries: tuple[Path, ...] = ()
    """Where the Python backend finds shared libraries."""
    stub: Path | None = None
    """The wheel's process that runs a Python model, for that Python's version."""

    def has(self, backend: str) -> bool:
        """Whether it comes with a backend, such as "onnxruntime"."""
        return backend == "python" or (
            self.backends is not None and (self.backends / backend).is_dir()
        )

    def backends_in(self, folder: Path) -> Path:
        """The folder of backends; the wheel's is laid out in `folder` first."""
        if self.backends is not None:
            return self.backends
        assert self.stub is not None, "the wheel brings one"
        place = folder / "python"
        place.mkdir(parents=True, exist_ok=True)
        shipped = self.server.parents[1] / "backends" / "python"
        for source in (*(shipped / name for name in _PYTHON_BACKEND), self.stub):
            link = place / source.name
            if not link.is_symlink():
                link.symlink_to(source)
        return folder

    def variables(self, extra: Mapping[str, str]) -> dict[str, str]:
        """The environment of the server: its Python first, its libraries found."""
        own = environments.variables(self.python)
        paths = [str(path) for path in self.libraries]
        if before := own.get("LD_LIBRARY_PATH"):
            paths.append(before)
        return {**own, **({"LD_LIBRARY_PATH": os.pathsep.join(paths)} if paths else {}), **extra}


def find(given: Path | None = None) -> Layout:
    """The installed server, looked for where every runtime is. Raises ConfigError."""
    try:
        server = environments.find("triton", "tritonserver", given)
    except ConfigError as missing:
        try:
            python = environments.find("triton", "python3", given)
        except ConfigError:
            raise missing from None
        for place in sorted(python.parent.parent.glob(_WHEEL)):
            return _wheel(place, python)
        raise missing from None
    home = server.resolve().parents[1]
    python = _first(server.parent / "python3", Path("/usr/bin/python3"))
    return Layout(server, python, home / "backends")


def _wheel(place: Path, python: Path) -> Layout:
    asked = subprocess.run(
        [python, "-I", "-c", _ABOUT], capture_output=True, text=True, timeout=_ASK_S, check=False
    )
    if asked.returncode:
        raise ConfigError(f"{python} does not run: {asked.stderr.strip()[-200:]}")
    version, libraries = asked.stdout.splitlines()
    stub = place / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        known = sorted(path.parent.name for path in stub.parents[1].glob("*/" + stub.name))
        raise ConfigError(
            f"{place} has no Python backend for Python {version} of {python}; it has those for"
            f" {', '.join(known)}"
        )
    found = [place.parents[1] / "nvidia_pytriton.libs"]
    found += [Path(libraries)] if libraries else []
    return Layout(place / "bin" / "tritonserver", python, None, tuple(found), stub)


def _first(*places: Path) -> Path:
    return next((place for place in places if place.exists()), places[-1])


def has_gpu() -> bool:
    """Whether a server started here sees a GPU of NVIDIA's."""
    return DRIVER.exists()
