"""GPUs of the catalogue: complete, sourced, and equal to the published system files."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from modelium.catalog import GpuSpec, gpu, gpus
from modelium.errors import ProfileError

SYSTEMS = Path(__file__).resolve().parents[2] / "../shared/profiles/aiconfigurator/systems"
NAMES = list(gpus())
SHARING_MEMORY_WITH_THE_CPU = ("gh200-96g", "gh200-144g", "gb200-186g", "gb10-128g")
FIGURES = [f.name for f in fields(GpuSpec) if f.name not in ("name", "sources")]


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_names_its_source(name: str) -> None:
    spec = gpu(name)
    known = {figure for figure in FIGURES if getattr(spec, figure) is not None}
    assert set(spec.sources) == known
    assert all(spec.sources.values())


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_of_the_right_magnitude(name: str) -> None:
    spec = gpu(name)
    nominal = int(name.rsplit("-", 1)[1].removesuffix("g")) * 1e9
    assert 0.97 * nominal < spec.memory_bytes < 1.08 * nominal
    assert 2e11 < spec.bandwidth_bytes_per_s < 1e13
    assert 4e13 < spec.bf16_flops < 3e15
    assert spec.fp8_flops is None or 1.9 < spec.fp8_flops / spec.bf16_flops < 2.1
    slots = (16e9, 32e9, 64e9)
    assert spec.pcie_bytes_per_s in slots or name in SHARING_MEMORY_WITH_THE_CPU
    assert spec.peer_bytes_per_s >= spec.pcie_bytes_per_s


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("l4-24g", "l4"),
        ("l40s-48g", "l40s"),
        ("a100-80g", "a100_sxm"),
        ("h100-80g", "h100_sxm"),
        ("h200-141g", "h200_sxm"),
        ("b200-180g", "b200_sxm"),
        ("rtx-pro-6000-96g", "rtx_pro_6000_server"),
        ("a100-pcie-80g", "a100_pcie"),
        ("a30-24g", "a30"),
        ("b300-288g", "b300_sxm"),
        ("gb200-186g", "gb200"),
    ],
)
def test_agrees_with_the_published_system_file(name: str, file: str) -> None:
    path = SYSTEMS / f"{file}.yaml"
    if not path.exists():
        pytest.skip("shared/profiles/aiconfigurator/systems is not here")
    theirs, ours = yaml.safe_load(path.read_text())["gpu"], gpu(name)
    assert ours.bandwidth_bytes_per_s == theirs["mem_bw"]
    assert ours.bf16_flops == pytest.approx(theirs["bfloat16_tc_flops"], rel=1e-3)
    assert (ours.fp8_flops or 0) == pytest.approx(theirs.get("fp8_tc_flops", 0), rel=1e-3)
    # They round to whole GiB or state the nominal size; ours is what the driver reports.
    assert ours.memory_bytes == pytest.approx(theirs["mem_capacity"], rel=0.07)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("h100", "h100-80g"),
        ("H100-80G", "h100-80g"),
        ("NVIDIA H100 80GB HBM3", "h100-80g"),
        ("NVIDIA A100-SXM4-40GB", "a100-40g"),
        ("a100", "a100-80g"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090-24g"),
        ("rtx_pro_6000", "rtx-pro-6000-96g"),
        ("AMD Instinct MI300X", "mi300x-192g"),
    ],
)
def test_finds_a_gpu_by_alias_and_driver_name(asked: str, found: str) -> None:
    assert gpu(asked).name == found


def test_a_near_miss_gets_a_suggestion() -> None:
    with pytest.raises(ProfileError, match=r"'h1000'.*Did you mean 'h100'\?"):
        gpu("h1000")


def test_a_far_miss_gets_the_list() -> None:
    with pytest.raises(ProfileError, match=r"Known are v100-16g, .*mi300x-192g"):
        gpu("tpu")
