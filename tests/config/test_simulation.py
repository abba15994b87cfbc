"""What the simulator gets of a configuration, and that no setting of it is out of reach."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from modelium import catalog
from modelium.config import Config, make_plan, schema
from modelium.config.planning import simulation
from modelium.config.planning.engines import Engines
from modelium.config.values import Section, keys
from modelium.config.yaml import load
from modelium.control.costs import Links, Stages
from modelium.control.rules import Limits
from modelium.core import Slo
from modelium.sim import spec
from modelium.sim.profiles import step_time


def config(text: str) -> Config:
    given: dict[str, Any] = {"cluster": {"gpus": "h100-80g"}} | load(text, "test")
    return Config.of(given)


def settings(text: str) -> spec.Settings:
    return config(f"simulation: {text}").simulation.settings()


def engines(text: str) -> tuple[Engines, dict[str, Any]]:
    plan = make_plan(config(text))
    models = {name: one.model for name, one in plan.models.items()}
    return Engines(plan.models, plan.hardware.by_kind()), models


@pytest.mark.parametrize(
    ("section", "target"),
    [
        (simulation.Simulation, spec.Settings),
        (simulation.Admission, spec.Admission),
        (simulation.Faults, spec.Faults),
        (simulation.FaultAt, spec.FaultAt),
        (simulation.Limits, Limits),
        (schema.Slo, Slo),
        (schema.Links, Links),
        (schema.LoadStages, Stages),
        (schema.Infer, spec.Infer),
    ],
)
def test_every_field_of_the_simulator_can_be_set(section: type[Section], target: type) -> None:
    units = ("", "_s", "_bytes", "_bytes_per_s")
    known = keys(section)
    reached = {key + unit for key in known for unit in units}
    fields = {field.name for field in dataclasses.fields(target)}
    assert fields - reached - {"interference"} == set()
    assert {key for key in known if not fields & {key + unit for unit in units}} == set()


def test_nothing_said_means_the_simulators_own_defaults() -> None:
    assert settings("{}") == spec.Settings()


def test_settings_arrive_in_the_simulators_units() -> None:
    assert settings(
        """
        {router: round_robin, drain: 5min, rate_window: 30s, charge_decide: true, bins: 10,
         host_cache: false, prepared: false,
         admission: {queue_limit: 3, deadline: true, absent: reject, max_wait: 1s},
         limits: {loads_at_once: 2, min_residency: 10s},
         faults: {gpu_mtbf: 1d, retries: 0,
                  schedule: [{at: 1h, kind: load_slow, target: a, for: 10min, factor: 3}]}}
        """
    ) == spec.Settings(
        router="round_robin",
        drain_s=300.0,
        rate_window_s=30.0,
        charge_decide=True,
        bins=10,
        host_cache=False,
        prepared=False,
        admission=spec.Admission(3, True, "reject", 1.0),
        limits=Limits(loads_at_once=2, min_residency_s=10.0),
        faults=spec.Faults(
            schedule=(spec.FaultAt(3600.0, "load_slow", "a", 600.0, 3.0),),
            gpu_mtbf_s=86400.0,
            retries=0,
        ),
    )


def test_an_engine_has_the_profile_of_its_model_and_the_settings_of_vllm() -> None:
    text = """
    models:
      llama-3.1-8b: {vllm: {max_num_seqs: 7}}
    vllm: {default_settings: {max_num_seqs: 9, max_num_batched_tokens: 512, block_size: 32,
                              enable_prefix_caching: false}}
    """
    made, models = engines(text)
    engine = made(models["llama-3.1-8b"], "h100-80g")
    assert engine == spec.Generate(
        step_time("llama-3.1-8b", "h100-80g").step,
        catalog.DEFAULT_KV_TOKENS,
        max_num_seqs=7,
        max_batched_tokens=512,
        block_tokens=32,
        prefix_caching=False,
        max_model_len=131072,  # the model's own
    )


def test_a_published_fit_is_used_only_for_weights_of_that_size() -> None:
    made, _ = engines("models: {a: llama-3.1-8b, b: {catalogue: llama-3.1-8b, vllm: {dtype: fp8}}}")
    assert made.profile("a", "h100-80g").origin == "fitted"
    assert made.profile("b", "h100-80g").origin == "roofline"


def test_a_configured_batch_engine_is_taken_as_it_is() -> None:
    text = """
    models:
      c: {weights: 1GiB, infer: {latency: [[4ms, 6ms], [1ms, 2ms]], max_delay: 2ms, servers: 2}}
      d: {weights: 1GiB, infer: {latency: [4ms, 6ms], per_token: 1us}}
    """
    made, models = engines(text)
    assert made(models["c"], "h100-80g") == spec.Infer(
        ((0.004, 0.006), (0.001, 0.002)), max_delay_s=0.002, servers=2
    )
    assert made.work_s(models["c"], "h100-80g", 5, 5) == pytest.approx((0.003 + 0.001) / 2)
    assert made.work_s(models["d"], "h100-80g", 100, 5) == pytest.approx(0.003 + 100e-6)


def test_an_encoder_answers_in_one_piece() -> None:
    made, models = engines("models: [bert-base]")
    engine = made(models["bert-base"], "h100-80g")
    assert isinstance(engine, spec.Infer)
    step = made.profile("bert-base", "h100-80g").step
    assert (engine.latency_s[0][-1], engine.per_token_s) == (step.mixed_c, step.mixed_hi)
    assert engine.per_token_s > 0


def test_work_is_a_share_of_full_steps_and_grows_with_tokens() -> None:
    made, models = engines("models: [llama-3.1-8b]")
    model = models["llama-3.1-8b"]
    step = made.profile("llama-3.1-8b", "h100-80g").step
    prefill = made.work_s(model, "h100-80g", 1000, 0)
    linear = (step.mixed_c + step.mixed_lo * min(8192, step.mixed_hinge)
              + step.mixed_hi * max(8192 - step.mixed_hinge, 0)) / 8192  # fmt: skip
    assert prefill == pytest.approx(1000 * linear + step.mixed_sq * 1e6)
    assert made.work_s(model, "h100-80g", 1000, 100) > prefill
    assert made.work_s(model, "h100-80g", 0, 100) < 100 * step.decode_c


def test_the_simulators_input_is_complete() -> None:
    plan = make_plan(config("models: [llama-3.1-8b, phi-4]\nslo: {classes: {x: {ttft: 1s}}}"))
    given = plan.sim_input(("said",))
    assert [model.name for model in given.models] == ["llama-3.1-8b", "phi-4"]
    assert given.facts.links("node0") == plan.hardware.links["node0"]
    assert given.slo_classes == {"x": Slo(ttft_s=1.0)}
    assert given.notes == ("said",)
    assert plan.sim_input().facts.seen is not given.facts.seen
