"""Profiles: data-sheet rooflines, shipped fits, and uneven contexts."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelium import catalog
from modelium.errors import ProfileError
from modelium.sim import profiles
from modelium.sim.profiles import context_spread, load, roofline_step, step_time
from modelium.sim.profiles.roofline import Device, Work, roofline
from modelium.sim.spec import StepTime

FOLDER = Path(profiles.__file__).parent
LLAMA_8B = Work(
    weights_bytes=16.06e9,
    flops_per_token=2 * 8.03e9,
    attention_flops=0.0,
    kv_bytes_per_token=131_072,
    layers=32,
    hidden=4096,
)
# Bandwidth, FLOPs; ms of a decode step of 1 and of 32 at 1k context, and of a 1k-token prefill.
TABLE = {
    "A10": (0.6e12, 125e12, 34, 42, 263),
    "L4": (0.3e12, 121e12, 67, 85, 272),
    "L40S": (0.864e12, 362e12, 23, 29, 91),
    "A100-80": (2.039e12, 312e12, 9.9, 12.5, 105),
    "H100": (3.35e12, 989e12, 6.0, 7.6, 33),
    "H200": (4.8e12, 989e12, 4.2, 5.3, 33),
    "B200": (7.7e12, 2250e12, 2.6, 3.3, 15),
    "MI300X": (5.3e12, 1307e12, 3.8, 4.8, 25),
}


def decode_s(step: StepTime, decode: float, kv: float) -> float:
    """The form of StepTime, written out."""
    over = max(decode - step.decode_hinge, 0)
    bends = sum(change * max(decode - at, 0) for at, change in step.decode_bends)
    return (
        step.decode_c
        + step.decode_lo * (decode - over)
        + step.decode_hi * over
        + bends
        + step.decode_kv * kv
    )


def prefill_s(step: StepTime, tokens: float) -> float:
    """A lone prefill with no context."""
    over = max(tokens - step.mixed_hinge, 0)
    linear = step.mixed_c + step.mixed_lo * (tokens - over) + step.mixed_hi * over
    return linear + step.mixed_prefill + step.mixed_sq * tokens**2


@pytest.mark.parametrize("name", TABLE)
def test_roofline_gives_the_textbook_table(name: str) -> None:
    """8B in BF16 at 0.8 of bandwidth and 0.5 of FLOPs, with no overhead."""
    bandwidth, flops, one, many, prefill = TABLE[name]
    step = roofline(
        LLAMA_8B, Device(flops, bandwidth, 1.0), mfu=0.5, mbu=0.8, kernel_s=0.0, overhead_s=0.0
    )
    found = (decode_s(step, 1, 1024), decode_s(step, 32, 32 * 1024), prefill_s(step, 1024))
    for ours, table in zip(found, (one, many, prefill), strict=True):
        assert 1e3 * ours == pytest.approx(table, rel=0.04)


def test_roofline_is_compute_bound_beyond_the_ridge() -> None:
    device = Device(989e12, 3.35e12, 1.0)
    step = roofline(LLAMA_8B, device, mfu=0.5, mbu=0.8, kernel_s=0.0, overhead_s=0.0)
    assert step.mixed_hinge == round(16.06e9 / (3.35e12 * 0.8) / (2 * 8.03e9 / (989e12 * 0.5)))
    assert step.mixed_lo == 0
    assert prefill_s(step, 4096) == pytest.approx(4096 * 2 * 8.03e9 / (989e12 * 0.5), rel=0.002)


def test_a_mixture_of_experts_reads_the_experts_that_its_batch_reaches() -> None:
    model, gpu = catalog.model("qwen3-30b-a3b"), catalog.gpu("h100-80g")
    step = roofline_step(model, gpu)
    bare = roofline(LLAMA_8B, Device(1e15, 1e15, 1.0), kernel_s=3e-6)
    fixed = bare.decode_c - LLAMA_8B.weights_bytes / (1e15 * 0.8)
    fixed *= model.layers / LLAMA_8B.layers
    achieved = gpu.bandwidth_bytes_per_s * 0.8
    assert decode_s(step, 1, 0) - fixed == pytest.approx(
        2 * model.active_params / achieved, rel=0.1
    )
    assert decode_s(step, 256, 0) == pytest.approx(model.weights_bytes / achieved, rel=0.1)
    assert decode_s(step, 256, 0) == pytest.approx(step.mixed_c, rel=0.02)


def test_tensor_parallelism_divides_bytes_and_adds_messages() -> None:
    model, gpu = catalog.model("llama-3.1-70b"), catalog.gpu("h100-80g")
    two, eight = roofline_step(model, gpu, 2), roofline_step(model, gpu, 8)
    assert 2.5 < decode_s(two, 1, 0) / decode_s(eight, 1, 0) < 4
    assert eight.mixed_lo > two.mixed_lo > 0


@pytest.mark.parametrize(
    "gpu",
    ["h100", "h200-141g", "a100-80g", "l40s", "b200-180g", "rtx-pro-6000-96g", "rtx-4090-24g"],
)
def test_8b_and_70b_classes_are_fitted_where_measurements_are_published(gpu: str) -> None:
    assert step_time("llama-3.1-8b", gpu).origin == "fitted"
    large = [step_time("llama-3.1-70b", gpu, tp).origin for tp in (4, 8)]
    published = gpu != "rtx-4090-24g"
    assert large == (["fitted"] * 2 if published else ["roofline"] * 2)


def test_models_of_one_shape_share_a_fit_and_others_fall_to_the_roofline() -> None:
    assert step_time("mistral-7b", "h100") == step_time("llama-3.1-8b", "h100-80g")
    assert step_time("qwen3-8b", "h100").origin == "roofline"
    assert step_time("llama-3.1-8b", "mi300x-192g").origin == "roofline"


def test_measured_mixed_batches_are_trusted_above_added_kernels() -> None:
    both = {(p.source.split(",")[0]) for p in load(FOLDER / "aiconfigurator.json")}
    assert both == {"NVIDIA aiconfigurator"}
    assert step_time("llama-3.1-8b", "rtx-pro-6000-96g").source.startswith("LLMServingSim")


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(ProfileError, match=r"Did you mean 'llama-3.1-8b'"):
        step_time("llama-3.1-8bb", "h100")


@pytest.mark.parametrize("file", profiles.FILES)
def test_every_shipped_fit_is_sound_and_says_where_it_is_from(file: str) -> None:
    document = json.loads((FOLDER / file).read_text())
    assert document["source"]["licence"] in {"MIT", "Apache-2.0"}
    assert document["overhead_s"] > 0
    assert "pull request 11133" in document["overhead_source"]
    for profile in load(FOLDER / file, spread=1.0):
        assert profile.error is not None
        assert profile.error["mixed"]["mape"] < 0.08
        assert profile.error["decode"]["mape"] < 0.05
        figures = [v for v in asdict(profile.step).values() if not isinstance(v, tuple)]
        assert all(math.isfinite(v) and v >= 0 for v in figures)
        base = [decode_s(profile.step, d, 0) for d in range(1, 513)]
        assert all(b >= a * (1 - 1e-5) for a, b in pairwise(base))
        assert prefill_s(profile.step, 2048) > prefill_s(profile.step, 512) > 0


def test_roofline_stays_near_the_fits_on_single_gpus() -> None:
    """What docs/profiles.md says of its error, on decode steps of 32."""
    errors = []
    for file in profiles.FILES:
        for entry in json.loads((FOLDER / file).read_text())["profiles"]:
            if entry["tp"] * entry["replicas"] > 1:
                continue
            fitted = step_time(entry["model"], entry["gpu"], spread=1.0).step
            sheet = roofline_step(catalog.model(entry["model"]), catalog.gpu(entry["gpu"]))
            kv = 32 * 1024
            errors.append(abs(decode_s(sheet, 32, kv) / decode_s(fitted, 32, kv) - 1))
    assert sum(errors) / len(errors) < 0.08


def test_spread_is_one_alone_and_of_even_lengths() -> None:
    assert context_spread([700], [1], 1) == pytest.approx(1.0)
    assert context_spread([100, 900], [50, 50], 1) == pytest.approx(1.0)
    assert context_spread([500] * 9, [1] * 9, 64) == pytest.approx(1.0, abs=0.002)


def test_spread_of_a_large_batch_is_the_longest_over_the_mean() -> None:
    prompts, outputs = [100] * 99 + [1100], [1] * 100
    assert context_spread(prompts, outputs, 5000) == pytest.approx(1101 / 110.5, rel=1e-3)


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 2000)), min_size=1, max_size=30))
def test_spread_grows_with_the_batch_up_to_its_bound(lengths: list[tuple[int, int]]) -> None:
    prompts, outputs = zip(*lengths, strict=True)
    spreads = [context_spread(prompts, outputs, n) for n in (1, 4, 32, 256)]
    assert spreads == sorted(spreads)
    assert spreads[0] == pytest.approx(1.0)
    assert spreads[-1] * min(prompts) <= max(p + o for p, o in lengths) * (1 + 1e-9)


def test_uneven_contexts_make_the_sum_of_contexts_dearer_and_nothing_else() -> None:
    even = step_time("llama-3.1-8b", "rtx-pro-6000-96g", spread=1.0).step
    uneven = step_time("llama-3.1-8b", "rtx-pro-6000-96g", spread=3.0).step
    factor = 1 + 0.0543 * 2  # alpha as LLMServingSim measured it
    assert uneven.decode_kv == pytest.approx(even.decode_kv * factor)
    assert uneven.mixed_kv == pytest.approx(even.mixed_kv * factor)
    changed = {k for k, v in asdict(even).items() if asdict(uneven)[k] != v}
    assert changed == {"decode_kv", "mixed_kv"}
