"""Fits: planted coefficients come back, shipped ones are made again, bad folders are named."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from modelium.errors import ProfileError
from modelium.sim import profiles
from modelium.sim.fit import aiconfigurator, document, llmservingsim
from modelium.sim.fit.__main__ import main
from modelium.sim.fit.form import NODES, Steps, fit
from modelium.sim.fit.grid import kv_pool_tokens, padded

SHARED = Path(__file__).resolve().parents[2] / "../shared"
MEASURED = SHARED / "profiles"
needs_profiles = pytest.mark.skipif(
    not MEASURED.is_dir(), reason="../shared/profiles, the published measurements, is not here"
)


def planted(noise: float = 0.0) -> Steps:
    """Steps of a known form: bends at 8 and 64, a hinge at 256."""
    decode_only = [(d, c, 0, 0) for d, c in product(NODES, (128, 512, 2048))]
    mixed = product((0, 4, 64), (128, 2048), (32, 128, 512, 2048), (0, 1024))
    decode, context, chunk, computed = np.array([*decode_only, *mixed], float).T
    kv, prefills = decode * context, (chunk > 0).astype(float)
    tokens = decode + chunk
    alone = np.interp(decode, [0, 8, 64, 256], [0.010, 0.011, 0.014, 0.016]) + 1e-7 * kv
    together = 0.012 + 1e-5 * np.minimum(tokens, 256) + 4e-5 * np.maximum(tokens - 256, 0)
    together += 2e-5 * decode + 3e-7 * kv + 3e-9 * chunk * computed + 2e-9 * chunk**2
    seconds = np.where(prefills > 0, together, alone)
    seconds *= 1 + noise * np.random.default_rng(1).standard_normal(len(seconds))
    return Steps(decode, kv, chunk, prefills, chunk * computed, chunk * chunk, seconds)


def test_a_planted_form_comes_back_exactly() -> None:
    fitted = fit(planted())
    step = fitted.step
    assert fitted.decode.mape < 1e-5
    assert fitted.mixed.mape < 1e-5
    assert fitted.mixed.r2 == pytest.approx(1.0)
    assert step.mixed_hinge == 256
    assert (step.mixed_lo, step.mixed_hi) == pytest.approx((1e-5, 4e-5))
    assert (step.mixed_decode, step.mixed_kv) == pytest.approx((2e-5, 3e-7))
    assert (step.mixed_ctx, step.mixed_sq) == pytest.approx((3e-9, 2e-9))
    assert step.decode_kv == pytest.approx(1e-7)
    slopes = {at: change for at, change in step.decode_bends if abs(change) > 1e-9}
    assert slopes == pytest.approx({8: 3 / 56e3 - 1e-3 / 8, 64: 2 / 192e3 - 3 / 56e3}, rel=1e-3)


def test_noise_shows_in_the_error_and_hardly_in_the_coefficients() -> None:
    fitted = fit(planted(noise=0.02))
    assert 0.005 < fitted.mixed.mape < 0.03
    assert fitted.step.mixed_kv == pytest.approx(3e-7, rel=0.1)


def test_overhead_is_added_to_the_constant_of_both_sets() -> None:
    bare, loaded = fit(planted()).step, fit(planted(), overhead_s=1e-3).step
    assert loaded.decode_c - bare.decode_c == pytest.approx(1e-3)
    assert loaded.mixed_c - bare.mixed_c == pytest.approx(1e-3)


def test_no_coefficient_makes_a_step_faster() -> None:
    steps = planted()
    steps.seconds[:] = np.where(steps.ctx > 0, 0.9, 1.0) * steps.seconds  # as if context helped
    assert fit(steps).step.mixed_ctx >= 0


def test_too_few_steps_are_refused() -> None:
    steps = planted()
    with pytest.raises(ProfileError, match="mixed steps: at least 20 needed"):
        fit(steps.only(steps.prefills == 0))


def test_cuda_graphs_come_in_fixed_sizes() -> None:
    tokens = np.array([1, 2, 3, 5, 9, 250, 257, 500, 513, 2000], float)
    assert padded(tokens).tolist() == [1, 2, 4, 8, 16, 256, 272, 512, 513, 2000]


def test_a_fit_is_only_for_batches_that_fit_into_memory() -> None:
    assert kv_pool_tokens("llama-3.1-8b", "rtx-4090-24g", 1) < 60_000
    assert kv_pool_tokens("llama-3.1-70b", "h100-80g", 1) < 0


def close(a: Any, b: Any) -> bool:
    """Whether two JSON values agree within rounding."""
    if isinstance(a, float) and isinstance(b, float | int):
        return bool(abs(a - b) <= 2e-4 * max(abs(a), abs(b)) + 1e-13)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(close(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[k], b[k]) for k in a)
    return bool(a == b)


def shipped(name: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The profiles of a shipped file by what identifies them."""
    text = (Path(profiles.__file__).parent / name).read_text()
    return {identity(p): p for p in json.loads(text)["profiles"]}


def identity(profile: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(profile[k] for k in ("model", "gpu", "tp", "replicas"))


def agree(results: Iterable[document.Result], name: str) -> int:
    """Compare fits made now with the shipped ones; return how many."""
    known, n = shipped(name), 0
    for result in results:
        again = json.loads(json.dumps(result.plain()))
        there = known[identity(again)]
        for part in ("step", "error"):
            for key, value in again[part].items():
                assert close(value, there[part][key]), (identity(again), part, key)
        n += 1
    return n


@needs_profiles
def test_llmservingsim_fits_are_made_again() -> None:
    source = document.SOURCES["llmservingsim"]
    results = source.fits(MEASURED / "llmservingsim", MEASURED / "aiconfigurator")
    assert agree(results, "llmservingsim.json") == len(shipped("llmservingsim.json"))


@needs_profiles
def test_aiconfigurator_fits_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of six systems, whose files are small."""
    monkeypatch.setattr(aiconfigurator, "SYSTEMS", {"a100_sxm": "a100-80g"})
    results = document.SOURCES["aiconfigurator"].fits(MEASURED / "aiconfigurator", None)
    assert agree(results, "aiconfigurator.json") == 11


@needs_profiles
def test_several_gpus_need_the_links_between_them() -> None:
    case = next(c for c in llmservingsim.cases(MEASURED / "llmservingsim") if c.tp == 2)
    with pytest.raises(ProfileError, match="needs --links"):
        llmservingsim.steps(case, None)


@pytest.mark.parametrize("source", sorted(document.SOURCES))
def test_a_folder_without_measurements_is_one_line_and_exit_2(source: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = CliRunner().invoke(main, [source, str(tmp_path), "--out", str(out)])
    assert result.exit_code == 2
    assert result.stderr.startswith("modelium: ")
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_errors_and_writes_what_profiles_load(tmp_path: Path) -> None:
    steps = planted()
    names = ("prefill_tokens", "n_prefill", "prefill_ctx_tokens", "n_decode", "decode_kv_tokens")
    context = steps.ctx / np.maximum(steps.prefill_tokens, 1)
    columns = (steps.prefill_tokens, steps.prefills, context, steps.decode, steps.kv)
    rows = np.stack([*columns, steps.seconds * 1e3], axis=1)
    header = ",".join([*names, "iter_ms"])
    np.savetxt(tmp_path / "batches.csv", rows, "%.9g", ",", header=header, comments="")
    config = {"model": "meta-llama/Llama-2-7b-hf", "gpu": "a100 80GB"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    out = tmp_path / "fit.json"
    result = CliRunner().invoke(main, ["vidur", str(tmp_path), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "llama-2-7b 1xa100-80g" in result.output
    (profile,) = profiles.load(out)
    assert profile.step.mixed_kv == pytest.approx(3e-7)
    assert profile.step.decode_kv == pytest.approx(1e-7)
    assert profile.licence == "MIT"
