"""What an engine was started with, against what is configured now."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelium.live.engines.launch import difference, launched_with
from modelium.live.settings import Served
from modelium.storage.fingerprint import fingerprint
from modelium.testing.scenarios import model

SETTINGS: dict[str, Any] = {
    "max_model_len": 4096,
    "flags": ["--enforce-eager"],
    "env": {"HF_TOKEN": "hf_secret", "OMP_NUM_THREADS": "1"},
}


@pytest.fixture
def served(tmp_path: Path) -> Served:
    folder = tmp_path / "v1"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    server = {"environment": ".engines/vllm"}
    return looked_at(Served(model("a", 60), "vllm", folder, SETTINGS, 256, server))


def looked_at(served: Served) -> Served:
    """With its files as they are now."""
    assert served.path is not None
    return replace(served, files=fingerprint(served.path))


def kept(served: Served) -> Any:
    """As the journal gives it back."""
    return json.loads(json.dumps(launched_with(served, served.files)))


def test_the_same_is_the_same_also_elsewhere(served: Served, tmp_path: Path) -> None:
    before = kept(served)
    assert difference(before, served).words == ""
    assert served.path is not None
    moved = served.path.rename(tmp_path / "moved")
    assert difference(before, looked_at(replace(served, path=moved))).words == ""
    (moved / "engine.log").write_text("what an engine writes beside its files is none of them")
    assert difference(before, looked_at(replace(served, path=moved))).words == ""


def test_files_that_an_earlier_version_kept_as_well_are_no_difference(
    served: Served, tmp_path: Path
) -> None:
    before = kept(served)
    before["files"].append(["engine.log", 10, 10, 10])
    assert served.path is not None
    moved = served.path.rename(tmp_path / "moved")
    assert difference(before, looked_at(replace(served, path=moved))).words == ""


def test_secrets_are_not_kept(served: Served) -> None:
    first, second = kept(served), kept(served)
    assert "hf_secret" not in json.dumps(first)
    assert first["env"]["HF_TOKEN"] != second["env"]["HF_TOKEN"], "each has its own salt"


def settings(**changed: Any) -> Callable[[Served], Served]:
    return lambda served: replace(served, settings={**served.settings, **changed})


REPLACED = {
    "max_model_len was 4096, is 1024": settings(max_model_len=1024),
    "flags was --enforce-eager, is not set": lambda served: replace(
        served, settings={k: v for k, v in served.settings.items() if k != "flags"}
    ),
    "HF_TOKEN in env was changed, OMP_NUM_THREADS in env is gone, TZ in env is new": settings(
        env={"HF_TOKEN": "another", "TZ": "UTC"}
    ),
    "gpus was 1, is 2": lambda served: replace(served, model=replace(served.model, gpus=2)),
    "environment was .engines/vllm, is /opt/vllm": lambda served: replace(
        served, server={"environment": "/opt/vllm"}
    ),
    "a was not set, is 1, b was not set, is 1, c was not set, is 1 and 2 more": settings(
        a=1, b=1, c=1, flags=["-x"], max_model_len=1
    ),
}


@pytest.mark.parametrize("words", REPLACED)
def test_what_differs_is_said_and_serves_until_it_is_replaced(served: Served, words: str) -> None:
    found = difference(kept(served), REPLACED[words](served))
    assert (found.words, found.may_serve) == (words, True)


def test_that_one_could_sleep_and_need_not_is_no_difference(served: Served) -> None:
    cannot = replace(served, model=replace(served.model, can_sleep=False))
    assert difference(kept(served), cannot).words == ""
    assert difference(kept(cannot), served).words == "it was not started so that it can sleep"


def test_another_model_under_the_name_does_not_serve(served: Served, tmp_path: Path) -> None:
    before, other = kept(served), tmp_path / "v2"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"others!")
    found = difference(before, looked_at(replace(served, path=other)))
    assert (found.words, found.may_serve) == (f"path was {served.path}, is {other}", False)
    missing = difference(before, looked_at(replace(served, path=tmp_path / "nothing")))
    assert not missing.may_serve


@pytest.mark.parametrize("runtime", ["triton", "ray"])
def test_a_server_of_several_engines_has_to_be_started_anew(served: Served, runtime: str) -> None:
    server = {"environment": None, "env": {"OMP_NUM_THREADS": "1"}}
    before = replace(served, runtime=runtime, server=server)
    now = replace(before, server={**server, "env": {"OMP_NUM_THREADS": "2"}})
    found = difference(kept(before), now)
    assert (found.words, found.may_serve) == ("OMP_NUM_THREADS in env was changed", False)
    own = difference(kept(before), replace(before, settings={}))
    assert own.may_serve, "what is one engine's own is replaced by itself"
