"""Models that come into the repository without a word in the configuration."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from modelium.config import Config, make_plan
from modelium.config.planning.plan import with_model
from modelium.errors import ConfigError
from modelium.live.settings import Served
from modelium.serving import LaunchSpec
from modelium.serving import served_models as stocks
from modelium.serving.served_models import ASSUMED_ANSWER_S, ServedModels
from tests.live import tiny

OWN = "class Model:\n    def __call__(self, body):\n        return body\n"


def stock(folder: Path, **sections: Any) -> ServedModels:
    given = {"cluster": {"gpus": "l4"}, "model_repository": str(folder), **sections}
    config = Config.of(given)
    return ServedModels(LaunchSpec(config), make_plan(config))


def taken_in(there: ServedModels, name: str) -> Served:
    assert there.repository is not None
    folder = there.repository.incoming / name
    return there.add(there.repository.add_model_from_incoming(folder))


def test_a_folder_of_code_alone_is_served_by_ray_at_an_assumed_speed(tmp_path: Path) -> None:
    there = stock(tmp_path)
    (tmp_path / "incoming" / "own").mkdir()
    (tmp_path / "incoming" / "own" / "model.py").write_text(OWN)
    one = taken_in(there, "own")
    assert (one.runtime, one.model.weights_bytes) == ("ray", len(OWN))
    assert there.work_s(one.model, "l4-24g", 100, 100) == ASSUMED_ANSWER_S
    assert there.notes == ["own: its files do not tell its speed: 10 ms assumed"]
    assert [each.model.name for each in stock(tmp_path).given(print).served] == ["own"], (
        "also later"
    )


@pytest.mark.parametrize(("emulated", "runtime"), [(False, "vllm"), (True, "emulated")])
def test_what_a_repository_holds_is_emulated_if_everything_is(
    tmp_path: Path, emulated: bool, runtime: str
) -> None:
    there = stock(tmp_path, emulated={"enabled": emulated})
    tiny.llama(tmp_path / "incoming" / "small")
    assert taken_in(there, "small").runtime == runtime
    assert not there.notes, "its shape is known, so is its speed"


def test_code_alone_in_the_configuration_needs_its_weights(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "model.py").write_text(OWN)
    own = {"path": str(tmp_path / "own"), "infer": {"latency": ["5ms"]}}
    with pytest.raises(ConfigError, match="holds no model"):
        make_plan(Config.of({"cluster": {"gpus": "l4"}, "models": {"own": own}}))
    own["weights"] = "2GiB"
    plan = make_plan(Config.of({"cluster": {"gpus": "l4"}, "models": {"own": own}}))
    assert plan.models["own"].model.weights_bytes == 2 << 30
    (tmp_path / "own" / "model.py").unlink()
    with pytest.raises(ConfigError, match="holds no model"):
        make_plan(Config.of({"cluster": {"gpus": "l4"}, "models": {"own": own}}))


def missing(runtime: str) -> None:
    raise ConfigError(f"{runtime} is not installed")


def test_a_runtime_that_is_missing_leaves_out_what_came_by_itself(tmp_path: Path) -> None:
    tiny.llama(tmp_path / "incoming" / "small")
    taken_in(stock(tmp_path), "small")
    there = stock(tmp_path)
    assert there.given(missing).served == []
    assert there.notes == ["small is not served: vllm is not installed"]


def test_a_runtime_that_is_missing_is_told_of_what_was_asked_for(tmp_path: Path) -> None:
    tiny.llama(tmp_path / "small")
    there = stock(tmp_path, models={"small": {"path": "small", "runtime": "vllm"}})
    with pytest.raises(ConfigError, match="vllm is not installed"):
        there.given(missing)


def test_files_are_analysed_while_a_later_configuration_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.llama(tmp_path / "small")
    own = {"path": str(tmp_path / "small"), "runtime": "vllm"}
    kv = ("1GiB", "2GiB")
    there, later = (stock(tmp_path / "r", models={"own": {**own, "kv": size}}) for size in kv)
    for each in (there, later):
        each.given(lambda runtime: None)
    begun, go_on, results = threading.Event(), threading.Event(), []

    def slowly(*given: Any) -> Any:
        begun.set()
        if not go_on.wait(30.0):
            raise AssertionError("the event loop would have waited for the analysis")
        return with_model(*given)

    monkeypatch.setattr(stocks, "with_model", slowly)
    renewing = threading.Thread(target=lambda: results.append(there.renew("own")))
    renewing.start()
    assert begun.wait(30.0)
    there.become(later)
    go_on.set()
    renewing.join()
    assert [one.model.kv_bytes for one in results] == [2 << 30], "as the later configuration has it"


def test_what_an_analysis_notes_is_noted_once(tmp_path: Path) -> None:
    there = stock(tmp_path)
    (tmp_path / "incoming" / "own").mkdir()
    (tmp_path / "incoming" / "own" / "model.py").write_text(OWN)
    taken_in(there, "own")
    for _ in range(3):
        there.renew("own")
    assert there.notes == ["own: its files do not tell its speed: 10 ms assumed"]
    there.remove("own")
    assert there.stored_names == []
    with pytest.raises(ConfigError, match="own was removed"):
        there.renew("own")


def test_what_a_later_configuration_knows_is_taken_over(tmp_path: Path) -> None:
    tiny.llama(tmp_path / "incoming" / "small")
    there = stock(tmp_path)
    later = stock(tmp_path, models={"own": {"catalogue": "qwen2.5-0.5b", "runtime": "emulated"}})
    there.given(lambda runtime: None)
    later.given(lambda runtime: None if runtime == "emulated" else missing(runtime))
    there.become(later)
    assert list(there.plan.models) == ["own"]
    with pytest.raises(ConfigError, match="vllm is not installed"):
        taken_in(there, "small")
