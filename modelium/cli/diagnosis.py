"""What `modelium check` finds out about this machine and the configuration."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelium.config import Config, examine, find, make_plan, search
from modelium.config.access import access_notes, exposed
from modelium.config.live import Ray, Triton
from modelium.config.planning.live import sleep_clashes
from modelium.config.schema import Vllm
from modelium.errors import ConfigError, ModeliumError
from modelium.managers import environment as environments
from modelium.managers.triton import layout as triton_layout
from modelium.units import GIB, counted, format_bytes

if TYPE_CHECKING:
    from modelium.live.engines.gpus import Reading

OK, NOTE, WRONG = "ok", "note", "wrong"
ENGINES = ("vllm", "ray")
LEAST_FREE_BYTES = GIB
"""A day's run leaves some megabytes, a million requests a hundred."""
OTHER_PIDS = (
    "process numbers here are others than the host's, as in most containers: what engines hold may"
    " not be measured. docker --pid=host or Kubernetes' hostPID: true helps"
)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([\w-]+)""")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    verdict: str
    """ok; note: fine, but good to know; wrong: has to be put right."""
    what: str
    says: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def diagnose(config: Path | None = None) -> list[Finding]:
    """Look at everything; `config` is the file to check instead of the one that is found."""
    readings, gpus = _gpus()
    given, found = _configuration(config, readings)
    return [
        _python(),
        *_packages(),
        *gpus,
        *found,
        *_access(given or Config()),
        *_engines(given or Config()),
        _live_folder(given),
        _disk(Path()),
        _compiled(),
    ]


def _python() -> Finding:
    version = f"{platform.python_version()} at {sys.executable}"
    return Finding(OK, "python", version)


def _packages() -> Iterator[Finding]:
    """The packages that simulation needs in one line, and one for each extra."""
    needed: dict[str, list[str]] = {}
    for text in metadata.requires("modelium") or ():
        extra = _EXTRA.search(text)
        needed.setdefault(extra[1] if extra else "", []).append(_NAME.match(text)[0])  # type: ignore[index]
    for extra_name, names in needed.items():
        if extra_name in ENGINES:
            continue  # they are looked for in environments of their own
        versions = {name: _version(name) for name in names}
        missing = [name for name, version in versions.items() if version is None]
        what = f"[{extra_name}]" if extra_name else "packages"
        if missing:
            install = f"pip install 'modelium{what if extra_name else ''}'"
            says = f"no {', '.join(missing)}: {install}"
            yield Finding(NOTE if extra_name else WRONG, what, says)
        else:
            yield Finding(OK, what, ", ".join(f"{n} {v}" for n, v in versions.items()))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> tuple[list[Reading], list[Finding]]:
    """The GPUs that a server here would use, and a line for each."""
    if find_spec("pynvml") is None:
        says = "not looked for: nvidia-ml-py is not installed ([live])"
        return [], [Finding(NOTE, "GPUs", says)]
    from modelium.live.engines.gpu_processes import has_own_pids
    from modelium.live.engines.gpus import NvmlInventory
    from modelium.serving.hardware import seen

    try:
        readings, notes = seen(NvmlInventory())
    except ConfigError as error:
        return [], [Finding(NOTE, "GPUs", f"{error}. Simulation needs none")]
    notes = (*notes, *((OTHER_PIDS,) if has_own_pids() else ()))
    return readings, [*map(_gpu, readings), *(Finding(NOTE, "GPUs", note) for note in notes)]


def _gpu(reading: Reading) -> Finding:
    what = f"GPU {reading.number}"
    if reading.lost:
        return Finding(NOTE, what, f"{reading.name}: lost ({reading.lost})")
    free = f"{format_bytes(reading.free_bytes)} of {format_bytes(reading.total_bytes)} free"
    return Finding(OK, what, f"{reading.name} ({reading.kind}), {free}")


def _configuration(
    given: Path | None, readings: Sequence[Reading]
) -> tuple[Config | None, list[Finding]]:
    """The configuration as far as it can be read, and what there is to say about it."""
    try:
        path = find(given)
    except ModeliumError as error:
        return None, [Finding(WRONG, "config", str(error))]
    if path is None:
        places = ", ".join(str(place) for place in search())
        none = Finding(NOTE, "config", f"none; looked for {places}")
        return None, [none, *_assumed(Config(), readings)]
    config, problems = examine(path)
    if config is None:
        return None, [Finding(WRONG, "config", problem) for problem in problems]
    real = [] if config.emulated.enabled else list(readings)
    clashes = [] if config.vllm.sleep_mode is False else sleep_clashes(config, os.environ)
    notes = [Finding(NOTE, "sleep mode", clash) for clash in clashes]
    return config, [*_plans(path, config, real), *_assumed(config, real), *notes]


def _assumed(config: Config, readings: Sequence[Reading]) -> list[Finding]:
    if not readings:
        return []
    from modelium.serving.hardware import assumed

    return [Finding(NOTE, "GPUs", says) for says in assumed(config, readings)]


def _plans(path: Path, config: Config, readings: Sequence[Reading]) -> Iterator[Finding]:
    """Whether the models can be served on the GPUs of the file, and on those that are here."""
    if config.cluster.gpus or config.cluster.nodes or not readings:
        yield _plan(path, config)
    if readings:
        from modelium.serving.hardware import on_listed

        try:
            yield _plan(path, on_listed(config, readings), "on the GPUs that are here")
        except ConfigError as error:
            yield Finding(WRONG, "GPUs", str(error))


def _plan(path: Path, config: Config, where: str = "") -> Finding:
    try:
        plan = make_plan(config)
    except ModeliumError as error:
        return Finding(WRONG, "config", f"{path}: {f'{where}: ' if where else ''}{error}")
    gpus, models = counted(len(plan.hardware.gpus), "GPU"), counted(len(plan.models), "model")
    if not plan.hardware.gpus:
        says = f"{path}: {models}, no GPUs named: simulation chooses some; to serve, name some"
        return Finding(NOTE, "config", f"{says} (cluster: {{gpus: 4xh100-80g}}) or have a driver")
    assumed = "".join(f"; {note}" for note in plan.hardware.notes())
    said = f"{path}: {gpus}, {models}{f', {where}' if where else ''}{assumed}"
    return Finding(NOTE if assumed else OK, "config", said)


def _access(config: Config) -> Iterator[Finding]:
    """Who could call a server with this configuration."""
    if why := exposed(config):
        yield Finding(WRONG, "gateway", why)
        return
    try:
        notes = access_notes(config)
    except ModeliumError as error:
        yield Finding(WRONG, "gateway", str(error))
        return
    for note in notes:
        yield Finding(NOTE, "gateway", note)


def _engines(config: Config) -> Iterator[Finding]:
    """One line for each runtime: where it is installed, and which version."""
    named: dict[str, Vllm | Triton | Ray]
    named = {"vllm": config.vllm, "triton": config.triton, "ray": config.ray}
    for runtime, section in named.items():
        if not section.enabled:
            yield Finding(NOTE, runtime, "switched off in the configuration")
        elif runtime == "triton" and config.triton.url:
            yield Finding(OK, runtime, f"the server at {config.triton.url} is used")
        else:
            yield _engine(runtime, Path(section.environment) if section.environment else None)


def _engine(runtime: str, given: Path | None) -> Finding:
    """A runtime that nobody named may be missing: simulation and emulated engines need none."""
    try:
        if runtime == "triton":
            layout = triton_layout.find(given)
            program, beside, package = layout.server, layout.python, "nvidia-pytriton"
        else:
            program = beside = environments.find(runtime, runtime, given)
            package = runtime
    except ConfigError as error:
        named = given is not None or f"MODELIUM_{runtime.upper()}_ENV" in os.environ
        return Finding(WRONG if named else NOTE, runtime, str(error))
    version = environments.distribution(beside, package)
    return Finding(OK, runtime, f"{package} {version or 'of unknown version'} at {program}")


def _live_folder(config: Config | None) -> Finding:
    """Whether `modelium run` can keep its journal and logs; it makes the folder itself."""
    folder = Path((config or Config()).live.folder).absolute()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return Finding(OK, "live folder", f"{folder} can be written")
    says = f"{folder} cannot be written ({place}): set live: {{folder: ...}}"
    return Finding(WRONG if config else NOTE, "live folder", says)


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    says = f"{format_bytes(free)} free in {folder.resolve()}"
    return Finding(WRONG if free < LEAST_FREE_BYTES else OK, "disk", says)


def _compiled() -> Finding:
    """Whether compiled kernels can be kept: without that, each run compiles them again."""
    from modelium.sim.jit.native import folder

    kept = folder()
    place = next(path for path in (kept, *kept.parents) if path.exists())
    if os.access(place, os.W_OK):
        return Finding(OK, "kernels", f"compiled once, kept in {kept}")
    says = f"compiled anew in each run: {kept} cannot be written"
    return Finding(NOTE, "kernels", f"{says} (set NUMBA_CACHE_DIR)")
