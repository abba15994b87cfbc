"""Which GPUs engines are told to see, whatever the server itself was told."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelium.managers import environment
from modelium.managers.engine import Engine, Order
from modelium.managers.triton.server import Gpu
from modelium.managers.vllm import command as vllm_command


@pytest.mark.parametrize(
    ("own", "uuids", "seen"),
    [
        (None, (), "2,3"),
        (None, ("GPU-a", "MIG-b"), "GPU-a,MIG-b"),
        ("0,GPU-a", ("GPU-a", "MIG-b"), "GPU-a,MIG-b"),  # the server's list is not its engines'
        ("7", (), "2,3"),
        ("", (), ""),  # pretended GPUs: what the operator hides stays hidden
        ("-1", (), ""),
    ],
)
def test_an_engine_sees_its_own_gpus(
    monkeypatch: pytest.MonkeyPatch, own: str | None, uuids: tuple[str, ...], seen: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if own is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", own)
    order = Order("m#1", "m", devices=(2, 3), uuids=uuids)
    told = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": seen}
    assert environment.gpus(order.uuids, order.devices) == told
    common = {"CUDA_VISIBLE_DEVICES": "9"}
    found = vllm_command.variables(Path("/opt/vllm/bin/vllm"), order, common, cpu=False)
    assert told.items() <= found.items()


def test_an_engine_remembers_its_gpus_and_those_of_before_have_none() -> None:
    engine = Engine("m#1", "m", "vllm", "http://x", "openai", "m", (1,), ("GPU-a",))
    assert Engine.from_dict(engine.as_dict()) == engine
    before = {key: value for key, value in engine.as_dict().items() if key != "uuids"}
    assert Engine.from_dict(before).uuids == ()


def test_a_triton_server_is_found_by_its_gpu_whatever_number_that_has_now() -> None:
    names = {Gpu.of(Order("m#1", "m", devices=(n,), uuids=("GPU-a",))).name for n in (0, 3)}
    assert names == {"GPU-a"}
    assert Gpu.of(Order("m#1", "m", devices=(3,))).name == "gpu3"
