"""Names of GPUs as drivers, data sheets and people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelium.catalog import DriverFacts, device_spec, gpu, gpus, kind_of, note
from modelium.catalog.gpunames import parse
from modelium.errors import ProfileError
from modelium.units import GIB

MIB = 1 << 20
DRIVER_NAMES = {
    "NVIDIA H100 80GB HBM3": "h100-80g",
    "NVIDIA H100 PCIe": "h100-pcie-80g",
    "NVIDIA H100 80GB HBM2e": "h100-pcie-80g",
    "NVIDIA H100 NVL": "h100-nvl-94g",
    "NVIDIA H200": "h200-141g",
    "NVIDIA H200 NVL": "h200-nvl-141g",
    "NVIDIA H20": "h20-96g",
    "NVIDIA H20-3e": "h20-141g",
    "NVIDIA H800": "h800-80g",
    "NVIDIA H800 PCIe": "h800-pcie-80g",
    "NVIDIA GH200 120GB": "gh200-96g",
    "NVIDIA GH200 480GB": "gh200-96g",
    "NVIDIA GH200 144G HBM3e": "gh200-144g",
    "NVIDIA B200": "b200-180g",
    "NVIDIA B300 SXM6 AC": "b300-288g",
    "NVIDIA GB200": "gb200-186g",
    "NVIDIA GB10": "gb10-128g",
    "NVIDIA A100-SXM4-40GB": "a100-40g",
    "A100-SXM4-40GB": "a100-40g",
    "NVIDIA A100-SXM4-80GB": "a100-80g",
    "A100-SXM-80GB": "a100-80g",
    "NVIDIA A100-PCIE-40GB": "a100-pcie-40g",
    "NVIDIA A100 80GB PCIe": "a100-pcie-80g",
    "NVIDIA A800-SXM4-80GB": "a800-80g",
    "NVIDIA A800 80GB PCIe": "a800-pcie-80g",
    "NVIDIA A800 40GB Active": "a800-pcie-40g",
    "NVIDIA A40": "a40-48g",
    "NVIDIA A30": "a30-24g",
    "NVIDIA A10": "a10-24g",
    "NVIDIA A10G": "a10g-24g",
    "NVIDIA L4": "l4-24g",
    "NVIDIA L20": "l20-48g",
    "NVIDIA L40": "l40-48g",
    "NVIDIA L40S": "l40s-48g",
    "Tesla T4": "t4-16g",
    "Tesla V100-SXM2-16GB": "v100-16g",
    "Tesla V100-SXM2-32GB": "v100-32g",
    "Tesla V100-PCIE-16GB": "v100-pcie-16g",
    "Tesla V100-PCIE-32GB": "v100-pcie-32g",
    "GeForce RTX 3090": "rtx-3090-24g",
    "NVIDIA GeForce RTX 3090": "rtx-3090-24g",
    "NVIDIA GeForce RTX 4090": "rtx-4090-24g",
    "NVIDIA GeForce RTX 5090": "rtx-5090-32g",
    "NVIDIA RTX A6000": "rtx-a6000-48g",
    "NVIDIA RTX 6000 Ada Generation": "rtx-6000-ada-48g",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "rtx-pro-6000-96g",
    "Quadro RTX 8000": "rtx-8000-48g",
    "NVIDIA TITAN RTX": "titan-rtx-24g",
    "TITAN RTX": "titan-rtx-24g",
    "AMD Instinct MI300X OAM": "mi300x-192g",
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb": "h100-80g-mig-1g.10gb",
    "NVIDIA A100-SXM4-40GB MIG 3g.20gb": "a100-40g-mig-3g.20gb",
    "NVIDIA A30 MIG 2g.12gb": "a30-24g-mig-2g.12gb",
    "NVIDIA H100 NVL MIG 1g.12gb+me": "h100-nvl-94g-mig-1g.12gb.me",
}
RTX_3080 = DriverFacts((8, 6), 320, 9501e6, 8704, 1710e6)
WORDS = (
    "NVIDIA", "GeForce", "Tesla", "RTX", "H100", "h100", "A100", "4060", "Ti", "PCIe", "SXM4",
    "NVL", "80GB", "8g", "0g", "HBM3", "MIG", "1g.10gb", "9g.10gb", "1g.5gb+me", "foo", "é", "-",
)  # fmt: skip
NAMES = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join),
    st.sampled_from([*DRIVER_NAMES, *gpus()]),
)
FACTS = st.builds(
    DriverFacts,
    st.tuples(st.integers(0, 20), st.integers(0, 9)),
    st.integers(0, 8192),
    st.floats(0, 1e11),
    st.integers(0, 30_000),
    st.floats(0, 1e10),
)


@pytest.mark.parametrize(("name", "kind"), DRIVER_NAMES.items())
def test_what_the_driver_calls_it_is_in_the_catalogue(name: str, kind: str) -> None:
    assert gpu(name).name == kind
    assert gpu(kind).name == kind
    assert kind_of(name) == kind


@pytest.mark.parametrize(
    ("name", "memory_mib", "kind"),
    [
        ("NVIDIA GeForce RTX 4060 Ti", 8188, "rtx-4060-ti-8g"),
        ("NVIDIA GeForce RTX 4060 Ti", 16380, "rtx-4060-ti-16g"),
        ("NVIDIA A40", 49140, "a40-48g"),  # ECC off
        ("Tesla T4", 15109, "t4-16g"),  # as drivers before R510 counted
        ("NVIDIA H100", 81559, "h100-80g"),
        ("NVIDIA H100", 95830, "h100-94g"),  # an SXM board with more memory, not an NVL
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9984, "h100-80g-mig-1g.10gb"),
        ("NVIDIA A100-SXM-64GB", 65024, "a100-sxm-64g"),
        ("NVIDIA GeForce RTX 3080", 10240, "rtx-3080-10g"),
        ("NVIDIA T400 4GB", 3935, "t400-4g"),
        ("", 1024, "gpu-1g"),
    ],
)
def test_memory_tells_which_of_a_name_it_is(name: str, memory_mib: int, kind: str) -> None:
    spec = device_spec(name, memory_mib * MIB)
    assert (spec.name, spec.memory_bytes) == (kind, memory_mib * MIB)
    assert kind_of(kind) == kind


@pytest.mark.parametrize(
    "name",
    ["h100-pcie-94g", "h200-pcie", "A100-SXM-64GB", "NVIDIA H100 64GB HBM2", "a10-sxm",
     "rtx-4090-d", "NVIDIA GeForce RTX 4090 Laptop GPU", "rtx-6000", "h100-94g", "GRID A100-40C"],
)  # fmt: skip
def test_a_name_that_says_something_else_is_not_taken_for_its_neighbour(name: str) -> None:
    with pytest.raises(ProfileError, match="no GPU called"):
        gpu(name)


def test_a_mig_instance_has_its_slices() -> None:
    whole, part = gpu("h100"), gpu("h100-mig-2g.20gb")
    assert part.memory_bytes == whole.memory_bytes // 4
    assert part.bandwidth_bytes_per_s == whole.bandwidth_bytes_per_s / 4
    assert part.bf16_flops == pytest.approx(whole.bf16_flops * 2 / 7)
    assert part.nvlink_bytes_per_s is None
    assert gpu("a30-mig-2g.12gb").bf16_flops == gpu("a30").bf16_flops / 2
    with pytest.raises(ProfileError, match=r"'7g\.24gb' is no MIG profile of a a30-24g"):
        gpu("a30-mig-7g.24gb")


def test_what_the_driver_tells_goes_before_what_is_assumed() -> None:
    spec = device_spec("NVIDIA GeForce RTX 3080", 10 * GIB, RTX_3080)
    assert spec.bandwidth_bytes_per_s == pytest.approx(760e9, rel=1e-3)
    assert spec.bf16_flops == pytest.approx(59.5e12, rel=1e-2)  # the GA102 whitepaper's figure
    assert spec.fp8_flops is None
    assert note(spec) == (
        "rtx-3080-10g is not in the catalogue: 760 GB/s by the driver;"
        " 60 TFLOPS by cores and clock (Ampere, 8.6);"
        " PCIe 32 GB/s assumed as for a10-24g (cluster.kinds says better)"
    )


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("NVIDIA A100-SXM-64GB", "a100-40g"),
        ("h100-94g", "h100-80g"),
        ("h100-pcie-64g", "h100-pcie-80g"),
        ("Colossus 1", "a10-24g"),
    ],
)
def test_where_nothing_is_told_it_is_like_a_variant_of_the_same_model(name: str, like: str) -> None:
    spec, known = device_spec(name, 64 * GIB), gpu(like)
    assert spec.bandwidth_bytes_per_s == known.bandwidth_bytes_per_s
    assert (spec.bf16_flops, bool(spec.fp8_flops)) == (known.bf16_flops, bool(known.fp8_flops))
    assert f"assumed as for {like}" in note(spec)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("v100-16g", DriverFacts((7, 0), 4096, 877e6, 5120, 1530e6)),
        ("t4-16g", DriverFacts((7, 5), 256, 5001e6, 2560, 1590e6)),
        ("a100-40g", DriverFacts((8, 0), 5120, 1215e6, 6912, 1410e6)),
        ("a40-48g", DriverFacts((8, 6), 384, 7251e6, 10752, 1740e6)),
        ("l40s-48g", DriverFacts((8, 9), 384, 9001e6, 18176, 2520e6)),
        ("h100-80g", DriverFacts((9, 0), 5120, 2619e6, 16896, 1830e6)),
        ("b200-180g", DriverFacts((10, 0), 8192, 3996e6, 18944, 1965e6)),
        ("rtx-pro-6000-96g", DriverFacts((12, 0), 512, 14001e6, 24064, 2430e6)),
    ],
)
def test_what_is_reckoned_from_the_driver_agrees_with_data_sheets(
    name: str, facts: DriverFacts
) -> None:
    known, reckoned = gpu(name), device_spec("Colossus", 80 * GIB, facts)
    assert reckoned.bandwidth_bytes_per_s == pytest.approx(known.bandwidth_bytes_per_s, rel=0.07)
    assert reckoned.bf16_flops == pytest.approx(known.bf16_flops, rel=0.07)
    assert (reckoned.fp8_flops is None) == (known.fp8_flops is None)


@given(NAMES, st.integers(1, 1 << 42), FACTS)
def test_every_gpu_that_a_driver_lists_has_figures_and_one_name(
    name: str, memory_bytes: int, facts: DriverFacts
) -> None:
    spec = device_spec(name, memory_bytes, facts)
    assert spec.memory_bytes == memory_bytes
    assert spec.bandwidth_bytes_per_s > 0
    assert spec.bf16_flops > 0
    assert spec.pcie_bytes_per_s > 0
    assert kind_of(spec.name) == spec.name
    assert parse(spec.name).kind == spec.name
    assert len(note(spec).splitlines()) == (0 if _is_known(spec.name) else 1)


def _is_known(kind: str) -> bool:
    try:
        return gpu(kind).name == kind
    except ProfileError:
        return False
