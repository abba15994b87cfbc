"""Defaults of a loaded copy: it fits where it is said to fit, on as few GPUs as will do."""

from dataclasses import replace

import pytest

from modelium.catalog import (
    BatchLimits,
    core_model,
    gpu,
    gpus,
    model,
    models,
    overhead_bytes,
    tensor_parallel_size,
    tensor_parallel_sizes,
)
from modelium.catalog.serving import LEAST_KV
from modelium.core import Slo
from modelium.errors import ProfileError


@pytest.mark.parametrize("kind", gpus())
def test_a_copy_fits_the_gpus_it_asks_for(kind: str) -> None:
    spec = gpu(kind)
    for name in models():
        try:
            copy = core_model(model(name), gpu=spec)
        except ProfileError:
            continue
        assert copy.bytes_per_gpu() <= 0.9 * spec.memory_bytes + 1
        assert copy.kv_bytes >= LEAST_KV * 8 * 4096 * copy.kv_bytes_per_token * 0.999


@pytest.mark.parametrize(
    ("name", "kind", "size"),
    [
        ("llama-3.1-8b", "h100", 1),
        ("llama-3.1-8b", "l4", 1),
        ("llama-2-13b", "l4", 2),
        ("qwen2.5-32b", "h100", 1),
        ("qwen2.5-32b", "a100-40g", 2),
        ("llama-3.1-70b", "h100", 2),
        ("llama-3.1-70b", "l40s", 4),
        ("llama-3.1-70b", "mi300x", 1),
        ("mixtral-8x7b", "h100", 2),
        ("llama-3.1-405b", "h200", 8),
    ],
)
def test_tensor_parallel_size_is_what_people_use(name: str, kind: str, size: int) -> None:
    assert tensor_parallel_size(model(name), gpu(kind)) == size


def test_sizes_divide_the_heads_and_fit() -> None:
    assert tensor_parallel_sizes(model("llama-3.1-70b"), gpu("h100")) == (2, 4, 8)
    assert tensor_parallel_sizes(model("qwen2.5-7b"), gpu("l4")) == (1, 2, 4)
    assert tensor_parallel_sizes(model("llama-3.1-405b"), gpu("l4")) == ()


def test_half_the_gpus_would_not_do() -> None:
    spec, kind = model("llama-3.1-70b"), gpu("l40s")
    with pytest.raises(ProfileError):
        tensor_parallel_size(spec, kind, most=2)


def test_what_fits_nowhere_is_said_with_numbers_and_a_way_out() -> None:
    with pytest.raises(ProfileError, match=r"llama-3.1-405b needs .* each of 8 GPUs.*h100-80g has"):
        core_model(model("llama-3.1-405b"), gpu=gpu("h100"))


def test_kv_pool_is_what_was_asked_for_or_the_room_there_is() -> None:
    spec = model("llama-3.1-8b")
    assert core_model(spec, gpu=gpu("h100"), kv_tokens=1000).kv_bytes == 1000 * 128 * 1024
    tight = core_model(spec, gpu=gpu("l4"))
    assert tight.kv_bytes < 8 * 4096 * 128 * 1024
    assert tight.bytes_per_gpu() == pytest.approx(0.9 * gpu("l4").memory_bytes, rel=1e-6)


def test_latent_attention_keeps_its_kv_on_every_gpu() -> None:
    spec = model("deepseek-v2-lite")
    one, two = core_model(spec, gpus=1), core_model(spec, gpus=2)
    assert two.kv_bytes_per_token == 2 * one.kv_bytes_per_token
    assert two.kv_bytes == 2 * one.kv_bytes


def test_sizes_and_limits_are_taken_over() -> None:
    copy = core_model(model("llama-3.1-8b"), gpu=gpu("h100"), slo=Slo(ttft_s=9), name="mine")
    assert (copy.name, copy.family, copy.slo.ttft_s) == ("mine", "llama-3.1-8b", 9)
    assert copy.weights_bytes == 16_060_522_496
    assert 0 < copy.asleep_bytes < copy.overhead_bytes


def test_default_slo_is_two_seconds_and_a_tenth() -> None:
    assert core_model(model("phi-4")).slo == Slo(ttft_s=2.0, tpot_s=0.1)


def test_more_gpus_never_need_more_each() -> None:
    sizes = [core_model(model("llama-3.1-70b"), gpus=n).bytes_per_gpu() for n in (1, 2, 4, 8)]
    assert sizes == sorted(sizes, reverse=True)


def test_logits_and_activations_grow_with_the_steps_that_are_allowed() -> None:
    spec = model("qwen2.5-7b")
    base = overhead_bytes(spec)
    more = overhead_bytes(spec, 1, BatchLimits(max_num_seqs=1024))
    assert more - base == 768 * spec.vocab * 14
    assert more - base > 1 << 30  # a GiB and a half: nothing to leave out
    tokens = overhead_bytes(spec, 1, BatchLimits(max_num_batched_tokens=2048))
    assert base - tokens == 3 * 2048 * 2 * (4 * spec.hidden + 2 * spec.intermediate)
    encoder = replace(spec, causal=False)
    assert base - overhead_bytes(encoder) == 256 * spec.vocab * 14
