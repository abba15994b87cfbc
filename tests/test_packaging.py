"""Wheel and sdist hold real files in place of the links, and what they install works."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from modelium import __version__

ROOT = Path(__file__).resolve().parents[1]
LINKS = ("sim", "policies", "traces")


def run(*args: str, cwd: Path = ROOT, **env: str) -> str:
    """What a command prints; fails with its stderr if it fails."""
    ended = subprocess.run(args, cwd=cwd, env=os.environ | env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist, and the wheel that was built from it."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), ".")
    return out


def tracked() -> set[str]:
    """The package's files as they should be in a wheel: what git has, by the package's names."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    files = run("git", "ls-files", "modelium", *LINKS).split()
    return {f if f.startswith("modelium/") else f"modelium/{f}" for f in files} - {
        f"modelium/{link}" for link in LINKS
    }


@pytest.mark.parametrize("name", LINKS)
def test_links_are_relative_and_resolve(name: str) -> None:
    link = ROOT / "modelium" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name
    assert link.resolve() == ROOT / name


def test_sdist_has_every_tracked_file_and_no_link(built: Path) -> None:
    with tarfile.open(built / f"modelium-{__version__}.tar.gz") as archive:
        assert [m.name for m in archive if m.issym() or m.islnk()] == []
        names = {m.name.partition("/")[2] for m in archive}
    assert tracked() <= names


def test_wheel_has_every_tracked_file_and_nothing_outside_the_package(built: Path) -> None:
    with zipfile.ZipFile(built / f"modelium-{__version__}-py3-none-any.whl") as archive:
        names = set(archive.namelist())
    assert tracked() <= names
    assert {name.partition("/")[0] for name in names} == {
        "modelium", f"modelium-{__version__}.dist-info",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["modelium-*.whl", "modelium-*.tar.gz"])
def test_what_is_installed_runs_from_elsewhere(built: Path, tmp_path: Path, kind: str) -> None:
    artefact, target = next(built.glob(kind)), tmp_path / "site"
    run(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
        "--target", str(target), str(artefact),
    )  # fmt: skip
    code = (
        "import modelium, modelium.sim.spec, modelium.policies, modelium.traces.trace;"
        "from modelium.cli import invoke; print(modelium.__path__[0]); invoke(['--version']);"
        "from modelium import catalog; print(catalog.gpu('h100').name);"
        "from modelium.config.template import TEMPLATE; print(TEMPLATE[:1])"
    )
    said = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(target)).splitlines()
    assert said == [str(target / "modelium"), f"modelium {__version__}", "h100-80g", "#"]
    assert (target / "bin" / "modelium").is_file()


def test_an_editable_install_finds_the_folders_at_the_top(tmp_path: Path) -> None:
    target = tmp_path / "site"
    run(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
        "--target", str(target), "--editable", ".",
    )  # fmt: skip
    code = (
        "import os, site, sys; site.addsitedir(sys.argv[1]);"
        "from importlib.util import find_spec;"
        "print(os.path.realpath(find_spec('modelium.sim').origin))"
    )
    # -S: without the packages of this environment, where modelium may be installed as well
    said = run(sys.executable, "-S", "-c", code, str(target), cwd=tmp_path)
    assert said.strip() == str(ROOT / "sim" / "__init__.py")


def test_every_dependency_has_a_lower_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [one for extra in project["optional-dependencies"].values() for one in extra]
    bare = [
        one
        for one in project["dependencies"] + extras
        if ">=" not in one and not one.startswith("modelium[")
    ]
    assert bare == []
    assert {"live", "vllm", "triton", "ray", "notebooks", "docs", "dev"} <= set(
        project["optional-dependencies"]
    )


def test_the_citation_names_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert f"version: {__version__}" in citation


def test_help_lists_what_make_can_do() -> None:
    said = run("make", "--no-print-directory", "help")
    assert [line.split()[1] for line in said.splitlines()] == [
        "demo", "demo-live", "test", "test-fast", "coverage", "engines", "lint", "bench", "docs",
    ]  # fmt: skip


def test_a_python_that_is_too_old_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text(encoding="utf-8"))
    ended = subprocess.run(
        ["make", "test", "PYTHON="], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[0] == "modelium needs Python 3.11 or later; none found"
