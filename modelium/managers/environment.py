"""Where engines are installed: they keep Python environments of their own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from modelium.errors import ConfigError

NOT_THEIRS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
"""Variables that speak of Modelium's own environment."""
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_HIDES_ALL = ("", "-1", "none", "void", "NoDevFiles")


def find(runtime: str, program: str, given: Path | None = None) -> Path:
    """A runtime's program: in the environment `given`, or in the first place that has one.

    Those are $MODELIUM_<RUNTIME>_ENV, `.engines/<runtime>` in the working directory, and PATH.
    `given` may also be the program itself. Raises ConfigError.
    """
    variable = f"MODELIUM_{runtime.upper()}_ENV"
    named = given or (Path(told) if (told := os.environ.get(variable)) else None)
    if named is not None:
        where = "the environment given" if given else f"${variable}"
        if found := _program(named, program):
            return found
        raise ConfigError(f"{where} for {runtime}: {named} has no bin/{program}")
    if found := _program(Path(".engines") / runtime, program):
        return found
    if on_path := shutil.which(program):
        return Path(on_path).absolute()
    raise ConfigError(
        f"{runtime} is not installed: no .engines/{runtime} here, no {program} on PATH; run"
        f" `make engines` in Modelium's folder, or set {variable} to an environment that has it"
    )


def variables(program: Path) -> dict[str, str]:
    """The environment in which an engine starts: ours, but with its own programs found first."""
    own = {name: value for name, value in os.environ.items() if name not in NOT_THEIRS}
    return {**own, "PATH": f"{program.parent}{os.pathsep}{own.get('PATH', os.defpath)}"}


def gpus(uuids: Sequence[str], devices: Sequence[int]) -> dict[str, str]:
    """Variables by which an engine sees its GPUs only: by UUID where the driver told it.

    Numbers are the driver's. Where the operator hides all GPUs they stay hidden.
    """
    seen = ",".join(uuids or map(str, devices))
    if not uuids and os.environ.get(_VISIBLE, "all").strip() in _HIDES_ALL:
        seen = ""
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", _VISIBLE: seen}  # not "fastest first"


def distribution(program: Path, name: str) -> str | None:
    """The version of a package beside `program`, None if it is not there."""
    stem = name.replace("-", "_")
    for place in program.parent.parent.glob(f"lib/python*/site-packages/{stem}-*.dist-info"):
        return place.name.removeprefix(f"{stem}-").removesuffix(".dist-info")
    return None


def _program(place: Path, program: str) -> Path | None:
    """`place` is an environment or the program. Links stay: they tell the environment."""
    for path in (place / "bin" / program, place):
        if path.is_file() and os.access(path, os.X_OK):
            return path.absolute()
    return None
