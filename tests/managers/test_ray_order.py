"""What Ray is told for an order, without a Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelium.managers.engine import Order, StartError
from modelium.managers.ray import order as ray_order


def wanted(path: Path, **more: Any) -> ray_order.Wanted:
    return ray_order.read(Order("m#1", "m", path, **more))


def test_a_folder_with_a_model_py_is_a_class_of_the_users(tmp_path: Path) -> None:
    assert wanted(tmp_path).model["class"] is None
    assert not wanted(tmp_path).plain
    named = wanted(tmp_path, settings={"class": "mine:Mine", "args": {"x": 1}})
    assert (named.model["class"], named.model["args"], named.plain) == ("mine:Mine", {"x": 1}, True)
    (tmp_path / "model.py").touch()
    assert (wanted(tmp_path).model["class"], wanted(tmp_path).plain) == ("", True)


def test_the_replica_sees_its_gpus_whatever_the_settings_say(tmp_path: Path) -> None:
    env = {"A": 1, "CUDA_VISIBLE_DEVICES": "7"}
    actor = wanted(tmp_path, devices=(2, 5), settings={"env": env}).actor
    seen = actor["runtime_env"]["env_vars"]
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["CUDA_DEVICE_ORDER"]) == ("2,5", "PCI_BUS_ID")
    assert (seen["A"], seen["HF_HUB_OFFLINE"]) == ("1", "1")
    assert (actor["num_gpus"], actor["slots"]) == (0, ["gpu_slot_2"])


@pytest.mark.parametrize(
    ("uuids", "ours", "seen"),
    [
        (("GPU-a", "GPU-b"), True, "GPU-a,GPU-b"),
        (("GPU-a", "GPU-b"), False, "2,5"),  # its nodes count their own
        (("MIG-a", "MIG-b"), False, "MIG-a,MIG-b"),  # no number names these
    ],
)
def test_gpus_are_named_by_uuid_where_that_is_the_same_machine(
    tmp_path: Path, uuids: tuple[str, ...], ours: bool, seen: str
) -> None:
    given = Order("m#1", "m", tmp_path, devices=(2, 5), uuids=uuids)
    actor = ray_order.read(given, ours=ours).actor
    assert actor["runtime_env"]["env_vars"]["CUDA_VISIBLE_DEVICES"] == seen


def test_its_share_of_the_memory_is_known_where_both_numbers_are(tmp_path: Path) -> None:
    assert wanted(tmp_path, bytes_per_gpu=20, memory_bytes=80).model["memory_share"] == 0.25
    assert wanted(tmp_path, bytes_per_gpu=90, memory_bytes=80).model["memory_share"] == 1.0
    assert "memory_share" not in wanted(tmp_path, bytes_per_gpu=20).model


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"dytpe": "float16"}, r"m: Ray has no setting 'dytpe'\. Did you mean 'dtype'"),
        ({"threads": [1, 2]}, r"m: threads is \[1, 2\], expected a whole number"),
        ({"trust_remote_code": "yes"}, "m: trust_remote_code is 'yes', expected true or false"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, settings: dict[str, Any], why: str) -> None:
    with pytest.raises(StartError, match=why):
        wanted(tmp_path, settings=settings)
