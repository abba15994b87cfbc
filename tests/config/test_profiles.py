"""Step times of the user's own machines: they go before published ones, and reports say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from modelium.config import Config, Plan, make_plan
from modelium.config.planning.assumed import calibration
from modelium.config.planning.engines import Engines
from modelium.config.yaml import load
from modelium.errors import ConfigError
from modelium.sim import profiles
from modelium.sim.profiles import step_time
from modelium.sim.spec import Generate, StepTime

SHIPPED = Path(profiles.__file__).parent / "aiconfigurator.json"
STEP = (
    "{decode_c: 7ms, decode_lo: 20us, decode_hi: 30us, decode_hinge: 64, decode_kv: 50ns,"
    " mixed_c: 9ms, mixed_lo: 15us, mixed_hi: 30us, mixed_hinge: 256, decode_bends: [[128, -1e-6]]}"
)
MINE = StepTime(
    0.007, 20e-6, 30e-6, 64, 50e-9, 0.009, 15e-6, 30e-6, 256, decode_bends=((128, -1e-6),)
)


def plan(text: str) -> Plan:
    given: dict[str, Any] = {"cluster": {"gpus": "2xh100-80g+l4"}} | load(text, "test")
    return make_plan(Config.of(given))


def engines(text: str) -> Engines:
    made = plan(text)
    return Engines(made.models, made.hardware.by_kind())


def steps(text: str, gpu: str = "h100-80g") -> dict[str, tuple[str, StepTime]]:
    made = plan(text)
    found = {name: engines(text).profile(name, gpu) for name in made.models}
    return {name: (profile.origin, profile.step) for name, profile in found.items()}


def entry(model: str, more: str = "") -> str:
    return f"{{model: {model}, gpu: h100{more}, step: {STEP}}}"


def test_own_coefficients_go_before_published_ones_for_that_kind_of_gpu_only() -> None:
    text = f"models: [llama-3.1-8b]\nprofiles: [{entry('llama-3.1-8b')}]"
    origin, step = steps(text)["llama-3.1-8b"]
    assert origin == "calibrated"
    assert step.decode_c == pytest.approx(0.007)
    for name in StepTime.__slots__:
        mine, given = getattr(MINE, name), getattr(step, name)
        assert given == (mine if name == "decode_bends" else pytest.approx(mine)), name
    published = step_time("llama-3.1-8b", "l4-24g")
    assert steps(text, "l4-24g")["llama-3.1-8b"] == (published.origin, published.step)
    engine = engines(text).engine("llama-3.1-8b", "h100-80g")
    assert isinstance(engine, Generate)
    assert engine.step == step


def test_an_entry_is_of_one_model_here_or_of_a_shape_of_the_catalogue() -> None:
    models = "models: {a: llama-3.1-8b, b: llama-3.1-8b, c: mistral-7b, d: phi-4}\n"
    by_name = steps(models + f"profiles: [{entry('a')}]")
    assert [origin for origin, _ in by_name.values()] == [
        "calibrated", "fitted", "fitted", "roofline",
    ]  # fmt: skip
    by_shape = steps(models + f"profiles: [{entry('llama-3.1-8b')}]")
    assert [origin for origin, _ in by_shape.values()][:2] == ["calibrated", "calibrated"]
    assert by_shape["d"][0] == "roofline"


def test_the_first_that_fits_is_taken_and_sizes_are_kept_apart() -> None:
    slower = entry("phi-4").replace("7ms", "70ms")
    two = entry("phi-4", ", tp: 2").replace("7ms", "4ms")
    text = f"models: [phi-4]\nprofiles: [{two}, {slower}, {entry('phi-4')}]"
    assert steps(text)["phi-4"][1].decode_c == pytest.approx(0.07)
    text = text.replace("[phi-4]", "{phi-4: {gpus: 2}}", 1)
    assert steps(text)["phi-4"][1].decode_c == pytest.approx(0.004)


def test_what_uneven_contexts_cost_is_added() -> None:
    text = f"models: [phi-4]\nprofiles: [{entry('phi-4', ', skew_alpha: 0.1')}]"
    assert steps(text)["phi-4"][1].decode_kv == pytest.approx(50e-9 * (1 + 0.1 * 1.9))


def test_a_file_of_the_fit_is_taken_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    document = json.loads(SHIPPED.read_text())
    for one in document["profiles"]:
        one["step"]["decode_c"] *= 2
    file.write_text(json.dumps(document))
    text = f"models: [llama-3.1-8b, phi-4]\nprofiles: ['{file}']"
    found, published = steps(text), step_time("llama-3.1-8b", "h100-80g")
    assert found["llama-3.1-8b"][0] == "calibrated"
    assert found["llama-3.1-8b"][1].decode_c == 2 * published.step.decode_c
    assert found["llama-3.1-8b"][1].decode_bends == published.step.decode_bends
    assert found["phi-4"][0] == "roofline"


def test_with_a_profile_a_model_needs_no_known_shape() -> None:
    text = (
        f"models: {{x: {{weights: 9GiB, kv: 4GiB, kv_per_token: 64KiB}}}}\nprofiles: [{entry('x')}]"
    )
    engine = engines(text).engine("x", "h100-80g")
    assert isinstance(engine, Generate)
    assert engine.kv_tokens == 65536
    with pytest.raises(ConfigError, match=r"models\.x: .* Set `kv` and `kv_per_token`"):
        plan(text.replace(", kv_per_token: 64KiB", ""))


def test_load_times_of_all_models_and_of_one() -> None:
    made = plan(
        "load: {unload: 9s, graphs: 8s}\n"
        "models: {phi-4: , a: {catalogue: phi-4, load: {graphs: 1s}}}"
    )
    assert [one.stages.unload_s for one in made.models.values()] == [9, 9]
    assert [one.stages.graphs_s for one in made.models.values()] == [8, 1]
    assert calibration(made)[1] == "load times: as configured"


def test_the_report_says_what_was_calibrated_and_how_far_fits_are_off() -> None:
    nothing = calibration(plan("models: [llama-3.1-8b, phi-4]\ncluster: {gpus: h100}"))
    assert nothing[0] == (
        "step times: 1 fitted to published measurements (mean error 0.9 to 1.8 %), 1 by roofline"
    )
    assert nothing[-1] == "not calibrated here"
    mine = calibration(
        plan(f"models: [phi-4]\ncluster: {{gpus: h100}}\nprofiles: [{entry('phi-4')}]")
    )
    assert mine == ["step times: 1 calibrated on your machines", "load times: published"]


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        (entry("phi4"), r"profiles\[0\]: model: no model called 'phi4'.* Did you mean 'phi-4'"),
        ("gone.json", r"profiles\[0\]: gone\.json: no such file; .*sim\.fit"),
        (".", r"profiles\[0\]: \.: cannot be read"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(profile: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan(f"models: [phi-4]\nprofiles: [{profile}]")


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("{decode_hinge: 1, mixed_hinge: 1, mixed_c: 1ms}", "a decode step takes 0 s"),
        ("{decode_hinge: 1, mixed_hinge: 1, decode_c: 1ms}", "a mixed step takes 0 s"),
        ("{decode_hinge: 1, mixed_hinge: 1, decode_cc: 1ms}", "Did you mean 'decode_c'"),
        ("{decode_c: 1ms, mixed_c: 1ms, mixed_hinge: 1}", r"decode_hinge\s+Field required"),
    ],
)
def test_a_step_takes_time(step: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        plan(f"models: [phi-4]\nprofiles: [{{model: phi-4, gpu: h100, step: {step}}}]")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", r"not JSON"),
        ("[]", r"mine\.json: .*"),
        ('{"profiles": []}', r"mine\.json: source: is missing"),
        (
            SHIPPED.read_text().replace('"decode_c"', '"decode_d"', 1),
            r"profiles\[0\]\.step\.decode",
        ),
        (SHIPPED.read_text().replace('"gpu": "h100', '"gpu": "h1000', 1), r"gpu: no GPU called"),
    ],
)
def test_a_broken_file_is_told_with_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "mine.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"^profiles\[0\]: .*mine\.json: ") as caught:
        plan(f"models: [phi-4]\nprofiles: ['{file}']")
    assert caught.match(said)
    assert "\n" not in str(caught.value)
