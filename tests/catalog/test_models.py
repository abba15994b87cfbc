"""Models of the catalogue: the shape must account for the published size."""

import pytest

from modelium.catalog import model, models
from modelium.errors import ProfileError

REQUIRED = [
    "qwen2.5-0.5b", "llama-3.2-1b", "qwen2.5-1.5b", "gemma-2-2b", "llama-3.2-3b", "phi-3.5-mini",
    "qwen2.5-3b", "qwen3-4b", "mistral-7b", "qwen2.5-7b", "qwen2.5-coder-7b", "llama-2-7b",
    "qwen3-8b", "llama-3.1-8b", "gemma-2-9b", "llama-2-13b", "phi-4", "qwen2.5-14b", "qwen3-14b",
    "gemma-2-27b", "qwen3-30b-a3b", "qwen2.5-32b", "qwen3-32b", "llama-3.1-70b", "qwen2.5-72b",
    "mixtral-8x7b", "llama-3.1-405b", "deepseek-v2-lite",
]  # fmt: skip


def test_has_the_well_known_models_smallest_first() -> None:
    assert set(REQUIRED) <= set(models())
    sizes = [spec.params for spec in models().values()]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("name", models())
def test_shape_accounts_for_the_published_parameters(name: str) -> None:
    spec = model(name)
    assert spec.counted_params == pytest.approx(spec.params, rel=0.01)
    assert spec.counted_params <= spec.params  # norms and biases are left out, nothing is invented


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("mixtral-8x7b", 12.9),
        ("mixtral-8x22b", 39.1),
        ("qwen3-30b-a3b", 3.3),
        ("qwen3-235b-a22b", 22.2),
        ("deepseek-v3", 37.5),
        ("llama-3.1-8b", 8.03),
    ],
)
def test_active_parameters_are_those_of_the_model_card(name: str, billions: float) -> None:
    assert model(name).active_params / 1e9 == pytest.approx(billions, rel=0.02)


def test_deepseek_v2_lite_has_its_2_4_billion_active_parameters_without_the_input_table() -> None:
    spec = model("deepseek-v2-lite")
    assert spec.flops_per_token / 2 / 1e9 == pytest.approx(2.4, rel=0.03)


@pytest.mark.parametrize(
    ("name", "kib"),
    [
        ("llama-3.1-8b", 128),
        ("llama-3.1-70b", 320),
        ("llama-3.1-405b", 504),
        ("qwen2.5-7b", 56),
        ("qwen3-32b", 256),
        ("llama-2-7b", 512),
        ("llama-2-13b", 800),
        ("deepseek-v2-lite", 30.375),  # 27 layers x (512 + 64) x 2 B
        ("deepseek-v3", 68.625),
        ("bert-base", 0),
    ],
)
def test_kv_bytes_per_token(name: str, kib: float) -> None:
    assert model(name).kv_bytes_per_token == kib * 1024


def test_a_sliding_window_bounds_the_kv_cache_of_its_layers() -> None:
    spec = model("gemma-2-9b")
    assert spec.kv_bytes(4096) == 4096 * spec.kv_bytes_per_token
    grown = spec.kv_bytes(8192) - spec.kv_bytes(4096)
    assert grown == 4096 * spec.kv_bytes_per_token // 2  # 21 of 42 layers go on growing


def test_without_a_window_the_kv_cache_is_proportional() -> None:
    spec = model("llama-3.1-8b")
    assert spec.kv_bytes(10_000) == 10_000 * spec.kv_bytes_per_token


def test_weights_of_the_reference_sizes() -> None:
    sizes = {"llama-3.1-8b": 16.1e9, "qwen3-32b": 65.5e9, "llama-3.1-70b": 141e9}
    for name, size in sizes.items():
        assert model(name).weights_bytes == pytest.approx(size, rel=0.003)


def test_flops_are_two_per_parameter_that_a_token_meets() -> None:
    llama = model("llama-3.1-8b")
    head = llama.vocab * llama.hidden
    assert llama.flops_per_token == 2 * (llama.counted_params - head)
    tied = model("llama-3.2-1b")  # its one table is the output head, which is multiplied
    assert tied.flops_per_token == 2 * tied.counted_params


def test_attention_flops_of_one_context_token() -> None:
    assert model("llama-3.1-8b").attention_flops_per_context_token == 4 * 32 * 32 * 128
    assert model("deepseek-v2-lite").attention_flops_per_context_token == 2 * 27 * 16 * (192 + 128)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("meta-llama/Meta-Llama-3.1-8B", "llama-3.1-8b"),
        ("meta-llama/Llama-3.3-70B-Instruct", "llama-3.1-70b"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
        ("Qwen/Qwen2.5-Coder-7B-Instruct", "qwen2.5-coder-7b"),
        ("google/gemma-2-27b-it", "gemma-2-27b"),
        ("microsoft/Phi-3.5-mini-instruct", "phi-3.5-mini"),
        ("deepseek-ai/DeepSeek-V2-Lite-Chat", "deepseek-v2-lite"),
    ],
)
def test_finds_a_model_by_its_hub_name(asked: str, found: str) -> None:
    assert model(asked).name == found


@pytest.mark.parametrize("name", models())
def test_every_model_is_found_by_its_own_name_and_hub_name(name: str) -> None:
    assert model(name).name == name
    assert model(model(name).hf_id) is model(name)
    assert model(name).hf_id in model(name).source


def test_a_near_miss_gets_a_suggestion() -> None:
    with pytest.raises(ProfileError, match=r"'llama-3.1-9b'.*Did you mean 'llama-3.1-8b'\?"):
        model("Llama-3.1-9B")


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("llama-3.1-8b", (1, 2, 4, 8)),
        ("qwen2.5-7b", (1, 2, 4)),
        ("qwen2.5-0.5b", (1, 2)),
        ("phi-4", (1, 2, 4, 8)),
    ],
)
def test_tensor_parallel_sizes_divide_the_heads(name: str, sizes: tuple[int, ...]) -> None:
    assert model(name).tensor_parallel_sizes() == sizes


def test_kv_is_copied_where_heads_cannot_be_dealt_out() -> None:
    assert [model("llama-3.1-8b").kv_copies(n) for n in (1, 8, 16)] == [1, 1, 2]
    assert [model("deepseek-v3").kv_copies(n) for n in (1, 8)] == [1, 8]
