"""Who may import whom: the arrows of the design, read from the source with `ast`."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelium.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"modelium": "modelium", "sim": "modelium.sim", "policies": "modelium.policies",
           "traces": "modelium.traces"}  # fmt: skip
LINKS = ("sim", "policies", "traces")

MAY_IMPORT = {
    "modelium.errors": (),
    "modelium.units": ("errors",),
    "modelium.addresses": (),
    "modelium.core": ("errors", "units"),
    "modelium.storage": ("errors", "units"),
    "modelium.control": ("core", "errors", "units"),
    "modelium.results": ("core", "errors", "units"),
    "modelium.catalog": ("core", "errors", "units"),
    "modelium.analyze": ("catalog", "core", "errors", "units", "storage"),
    "modelium.traces": ("errors", "units", "results"),
    "modelium.policies": ("core", "errors", "units"),
    "modelium.plugins": ("core", "errors", "units", "policies"),
    "modelium.sim": ("core", "errors", "units", "control", "results", "catalog", "traces"),
    "modelium.managers": ("errors", "units", "storage"),
    "modelium.metrics": ("errors", "units"),
    "modelium.live": (
        "core", "errors", "units", "control", "results", "catalog", "managers", "metrics",
        "storage",
    ),
    "modelium.gateway": ("errors", "units", "addresses", "live", "managers", "storage"),
    "modelium.repository": ("errors", "units", "analyze", "storage"),
    "modelium.client": ("errors", "units"),
    "modelium.testing": ("core", "errors", "units", "control"),
}  # fmt: skip
"""Room to the other rooms that it may use; config, experiments, serving and cli may use all.

What is imported for type checkers only is not counted here, but it is in the test of circles.
"""

MOST_ROOMS = 25
"""At the first level of `modelium/`, files and folders."""
MOST_FILES = 15
"""Beside each other in one folder."""
LARGEST_CIRCLE = 3
"""Files that import each other, lazy imports and those for type checkers counted."""

ONLY_IN = {
    "ortools": ("policies/ilp",),
    "simpy": ("sim/",),
    "numba": ("sim/jit/compiler.py",),
    "llvmlite": ("sim/jit/native.py",),
    "pydantic": ("modelium/config/",),
    "click": ("modelium/cli/", "sim/fit/__main__.py"),
    "jinja2": ("modelium/results/report/",),
    "matplotlib": ("modelium/results/report/", "traces/"),
    "pynvml": ("modelium/cli/diagnosis.py", "modelium/live/"),
    "aiohttp": ("modelium/gateway/", "modelium/client/replay.py"),
    "grpc": ("modelium/gateway/kserve/grpc.py",),
    "httptools": ("modelium/managers/emulated/server/",),
    "prometheus_client": ("modelium/metrics/",),
    "pandas": (),
}
"""Package to the beginnings of the only paths that may import it."""

ELSEWHERE = ("modelium/managers/ray/models/", "modelium/managers/triton/models/")
"""Code that runs in the engines' environments, where Modelium is not installed."""

NOT_IN_POLICIES = {"time", "datetime", "os", "pathlib", "socket", "subprocess", "threading"}


def sources() -> Iterator[Path]:
    """Every source file once, by its real path."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).parts
            linked = folder == "modelium" and parts[1] in LINKS
            if not linked and not str(path.relative_to(ROOT)).startswith(ELSEWHERE):
                yield path


def module_of(path: Path) -> str:
    """sim/spec.py -> modelium.sim.spec."""
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    names = [FOLDERS[folder], *rest]
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def imports(path: Path, *, types: bool = False) -> Iterator[str]:
    """Every module that a file imports, also inside functions; those for type checkers if asked."""
    yield from _imports(ast.parse(path.read_text(encoding="utf-8")), types)


def _imports(node: ast.AST, types: bool) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING":
            if types:
                yield from _imports(child, types)
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            module = child.module or ""
            yield from (f"{module}.{alias.name}" for alias in child.names)
        yield from _imports(child, types)


def part_of(module: str) -> str:
    """modelium.sim.spec.Settings -> modelium.sim."""
    return ".".join(module.split(".")[:2])


def all_imports() -> list[tuple[str, str]]:
    """(path, imported name) for the whole project."""
    return [(str(p.relative_to(ROOT)), name) for p in sources() for name in imports(p)]


def test_every_source_file_is_looked_at() -> None:
    modules = {module_of(path) for path in sources()}
    assert {
        "modelium.core",
        "modelium.sim.spec",
        "modelium.policies",
        "modelium.traces.trace",
    } <= modules


def test_each_part_imports_only_what_it_may() -> None:
    wrong = []
    for path in sources():
        part = part_of(module_of(path))
        if part not in MAY_IMPORT:
            continue
        allowed = {part, *(f"modelium.{name}" for name in MAY_IMPORT[part])}
        for name in imports(path):
            used = part_of(name)
            if (
                used.startswith("modelium.")
                and used not in allowed
                and used != "modelium.__version__"
            ):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_the_first_level_can_be_taken_in_at_a_glance() -> None:
    names = {path.stem for path in (ROOT / "modelium").iterdir() if path.suffix in ("", ".py")}
    assert len(names - {"__init__", "__pycache__"}) <= MOST_ROOMS


def test_no_folder_has_too_many_files_beside_each_other() -> None:
    count = Counter(path.parent for path in sources() if path.stem != "__init__")
    assert {str(folder): n for folder, n in count.items() if n > MOST_FILES} == {}


def test_files_import_each_other_in_one_direction() -> None:
    """The links are resolved: `sim/` is looked at as `modelium.sim`."""
    modules = {module_of(path): path for path in sources()}
    arrows: dict[str, set[str]] = {}
    for module, path in modules.items():
        used = set()
        for name in imports(path, types=True):
            while name and name not in modules:
                name = name.rpartition(".")[0]
            used.add(name)
        arrows[module] = used - {module, "", "modelium"}
    assert [circle for circle in circles(arrows) if len(circle) > LARGEST_CIRCLE] == []


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Modules that reach each other: what Tarjan calls strongly connected."""
    reach = {module: reached(module, arrows) for module in arrows}
    found = {
        tuple(sorted(other for other in reach[module] if module in reach[other]))
        for module in arrows
    }
    return [list(circle) for circle in sorted(found) if len(circle) > 1]


def reached(module: str, arrows: dict[str, set[str]]) -> set[str]:
    """Everything that a module imports, and what that imports, and so on."""
    found, todo = set[str](), [module]
    while todo:
        for other in arrows[todo.pop()] - found:
            found.add(other)
            todo.append(other)
    return found


@pytest.mark.parametrize("package", ONLY_IN)
def test_each_heavy_package_stays_in_its_place(package: str) -> None:
    users = {path for path, name in all_imports() if name.split(".")[0] == package}
    assert {path for path in users if not path.startswith(ONLY_IN[package])} == set()


def test_what_runs_elsewhere_imports_nothing_of_ours() -> None:
    for folder in ELSEWHERE:
        for path in (ROOT / folder).rglob("*.py"):
            assert "modelium." not in path.read_text(encoding="utf-8").replace("`modelium.", "")


def test_policies_have_no_clock_and_no_files() -> None:
    used = {(p, n) for p, n in all_imports() if p.startswith("policies/")}
    assert {(p, n) for p, n in used if n.split(".")[0] in NOT_IN_POLICIES} == set()


def test_the_gateway_knows_seats_and_engines_and_nothing_behind_them() -> None:
    used = {name for path, name in all_imports() if path.startswith("modelium/gateway/")}
    behind = {name for name in used if name.startswith(("modelium.live", "modelium.managers"))}
    known = ("modelium.live.requests.interface.", "modelium.managers.engine.")
    assert {name for name in behind if not name.startswith(known)} == set()
    assert behind


def test_nobody_imports_the_folders_by_their_bare_names() -> None:
    assert [(p, n) for p, n in all_imports() if n.split(".")[0] in LINKS] == []


@pytest.mark.parametrize("folder", LINKS)
def test_importing_a_folder_by_its_bare_name_is_refused(folder: str) -> None:
    code = f"import sys; sys.path.insert(0, ''); import {folder}"  # also with PYTHONSAFEPATH
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    assert f"import modelium.{folder}, not {folder}" in ended.stderr


HEAVY = (
    "numpy", "scipy", "numba", "llvmlite", "ortools", "pyarrow", "pydantic", "matplotlib", "simpy",
    "jinja2",
)  # fmt: skip


@pytest.mark.parametrize(
    "args",
    [["--help"], ["--version"], ["nonsense"]] + [[name, "--help"] for name in COMMANDS],
    ids=" ".join,
)
def test_help_answers_without_importing_anything_heavy(args: list[str]) -> None:
    code = (
        f"import sys; from modelium import cli; cli.invoke({args!r});"
        f"print(*[m for m in {HEAVY} if m in sys.modules], sep=',')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == ""
