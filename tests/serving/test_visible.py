"""Which GPUs the environment leaves: CUDA's rules, and those of container runtimes."""

from __future__ import annotations

import pytest

from modelium.config.planning.devices import GpuName
from modelium.serving.visible_devices import visible

H100 = [GpuName(f"gpu{i}", str(i), "h100-80g", uuid) for i, uuid in enumerate(
    ["GPU-8932f937-d72c", "GPU-8932aaaa-0000", "GPU-1f2e", "GPU-77"]
)]  # fmt: skip
MIXED = [*H100[:3], GpuName("gpu3", "3", "l4-24g", "GPU-77")]
MIG = [
    GpuName("gpu1", "1", "h100-80g", "GPU-whole"),
    GpuName("gpu0:0", "0:0", "h100-80g-mig-1g.20gb", "MIG-a1", "GPU-cut"),
    GpuName("gpu0:3", "0:3", "h100-80g-mig-1g.20gb", "MIG-b2", "GPU-cut"),
]


def left(gpus: list[GpuName], **environ: str) -> list[str]:
    return [gpu.number for gpu in visible(gpus, environ)[0]]


@pytest.mark.parametrize(
    ("given", "numbers"),
    [
        ("2,1", ["2", "1"]),
        (" 3 , GPU-1f", ["3", "2"]),
        ("GPU-8932f", ["0"]),
        ("0,2,-1,1", ["0", "2"]),
        ("0,9,1", ["0"]),
        ("0,GPU-8932,1", ["0"]),  # it might be either
        ("1,1", ["1"]),
        ("0,,1", ["0"]),
        ("", []),
        ("-1", []),
        ("none", []),
        ("void", []),
        ("all", []),  # CUDA does not know this word
        ("NoDevFiles", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(given: str, numbers: list[str]) -> None:
    assert left(H100, CUDA_VISIBLE_DEVICES=given) == numbers


@pytest.mark.parametrize(
    ("given", "numbers"),
    [
        ("all", ["0", "1", "2", "3"]),
        ("void", ["0", "1", "2", "3"]),  # they were given by CDI instead
        ("", ["0", "1", "2", "3"]),
        ("none", []),
        ("GPU-1f2e,GPU-77", ["2", "3"]),
        ("GPU-gone", []),
        ("1,2", ["1", "2"]),
        ("4,5,6,7", ["0", "1", "2", "3"]),  # the host's numbers: the runtime has heeded them
        ("0,9", ["0"]),
    ],
)
def test_what_a_container_runtime_was_told(given: str, numbers: list[str]) -> None:
    assert left(H100, NVIDIA_VISIBLE_DEVICES=given) == numbers


def test_without_a_word_all_are_visible_and_nothing_is_said() -> None:
    assert visible(H100, {}) == (H100, ())


def test_cuda_chooses_among_what_the_container_has() -> None:
    both = {"NVIDIA_VISIBLE_DEVICES": "GPU-1f2e,GPU-77", "CUDA_VISIBLE_DEVICES": "GPU-77,0"}
    kept, notes = visible(H100, both)
    assert [gpu.number for gpu in kept] == ["3"]
    assert notes == (
        "NVIDIA_VISIBLE_DEVICES=GPU-1f2e,GPU-77 leaves out 2 GPUs: 0, 1",
        "CUDA_VISIBLE_DEVICES=GPU-77,0 leaves out 1 GPU: 2",
        "CUDA_VISIBLE_DEVICES: '0' names no GPU; it is left out, as CUDA does",
    )


def test_mig_instances_are_named_by_uuid_or_by_the_gpu_that_they_are_of() -> None:
    assert left(MIG, CUDA_VISIBLE_DEVICES="MIG-b2") == ["0:3"]
    assert left(MIG, CUDA_VISIBLE_DEVICES="MIG-a,GPU-whole") == ["0:0", "1"]
    assert left(MIG, CUDA_VISIBLE_DEVICES="0") == ["0:0", "0:3"]
    assert left(MIG, CUDA_VISIBLE_DEVICES="GPU-cut") == ["0:0", "0:3"]
    assert left(MIG, NVIDIA_VISIBLE_DEVICES="0:3") == ["0:3"]


def test_numbers_are_ambiguous_where_gpus_differ() -> None:
    said = "CUDA counts the fastest GPU first unless CUDA_DEVICE_ORDER=PCI_BUS_ID"
    assert any(said in note for note in visible(MIXED, {"CUDA_VISIBLE_DEVICES": "0,3"})[1])
    ordered = {"CUDA_VISIBLE_DEVICES": "0,3", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    for environ in (ordered, {"CUDA_VISIBLE_DEVICES": "GPU-77"}):
        assert not any(said in note for note in visible(MIXED, environ)[1])
    assert not any(said in note for note in visible(H100, {"CUDA_VISIBLE_DEVICES": "0,3"})[1])
