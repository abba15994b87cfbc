"""Other formats, the choice of the engine, and GPUs that fit."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from modelium.analyze import analyze
from modelium.cli.analyze import analyze as command
from modelium.errors import ProfileError


class Bomb:
    """A pickle that would leave a trace if anybody opened it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def torch_archive(path: Path, *, code: bool) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("net/data.pkl", pickle.dumps(Bomb(path.parent / "opened")))
        archive.writestr("net/data/0", bytes(4096))
        if code:
            archive.writestr("net/code/__torch__.py", "def forward(): ...")


def external(name: str) -> bytes:
    """An ONNX tensor's entry that its data lies in the file `name`."""
    return b"\x08\x08....\x0a\x08location\x12" + bytes([len(name)]) + name.encode() + b"...."


def test_pickles_are_weighed_and_never_opened(llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    bomb = pickle.dumps(Bomb(llama / "opened"))
    (llama / "pytorch_model.bin").write_bytes(bomb)
    (llama / "training_args.bin").write_bytes(bytes(9999))
    files = analyze(llama)
    assert not (llama / "opened").exists()
    assert (files.format, files.weights_bytes) == ("pytorch", len(bomb))
    assert any("pickle" in note and "safetensors" in note for note in files.unknown)
    assert files.shape is not None
    assert files.parameters == files.shape.counted_params


def test_torchscript_is_listed_and_goes_to_triton(tmp_path: Path) -> None:
    torch_archive(tmp_path / "model.pt", code=True)
    files = analyze(tmp_path)
    assert (files.format, files.runtime) == ("torchscript", "triton")
    assert files.weights_bytes == (tmp_path / "model.pt").stat().st_size
    assert not (tmp_path / "opened").exists()


def test_an_archive_without_code_is_a_pickle(tmp_path: Path) -> None:
    torch_archive(tmp_path / "model.pt", code=False)
    assert analyze(tmp_path).format == "pytorch"
    assert not (tmp_path / "opened").exists()


def test_a_broken_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(ProfileError, match="not a whole archive"):
        analyze(tmp_path)


def test_onnx_counts_the_data_files_that_it_names(tmp_path: Path) -> None:
    graph = external("weights.data")
    (tmp_path / "model.onnx").write_bytes(graph)
    (tmp_path / "weights.data").write_bytes(bytes(5000))
    (tmp_path / "unrelated.data").write_bytes(bytes(7))
    files = analyze(tmp_path)
    assert (files.format, files.runtime, files.files) == ("onnx", "triton", 2)
    assert files.weights_bytes == len(graph) + 5000


@pytest.mark.parametrize("name", ["gone.data", "../up.data", "/etc/passwd"])
def test_onnx_data_that_is_gone_or_outside_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.onnx").write_bytes(external(name))
    with pytest.raises(ProfileError, match=r"model\.onnx names"):
        analyze(tmp_path)


def test_a_triton_folder_is_weighed_by_its_newest_version(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text('name: "x"\nbackend: "onnxruntime"\nmax_batch_size: 8\n')
    for version, size in (("1", 100), ("10", 300), ("9", 200)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "model.onnx").write_bytes(bytes(size))
    files = analyze(tmp_path)
    assert (files.format, files.runtime, files.weights_bytes) == ("onnxruntime", "triton", 300)


def test_a_triton_folder_of_another_backend_is_weighed_whole(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text('platform: "tensorrt_plan"\n')
    (tmp_path / "1").mkdir()
    (tmp_path / "1/model.plan").write_bytes(bytes(50))
    assert (analyze(tmp_path).format, analyze(tmp_path).weights_bytes) == ("tensorrt_plan", 50)


def test_a_triton_folder_without_a_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text("")
    with pytest.raises(ProfileError, match="no version folder"):
        analyze(tmp_path)


@pytest.mark.parametrize(
    ("config", "runtime"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "vllm"),
        ({"architectures": ["Qwen3MoeForCausalLM"]}, "vllm"),
        ({"architectures": ["DeepseekV3ForCausalLM"], "auto_map": {"AutoModel": "m.M"}}, "vllm"),
        ({"architectures": ["OwnForCausalLM"], "auto_map": {"AutoModel": "m.M"}}, "ray"),
        ({"architectures": ["OwnForCausalLM"]}, "ray"),
        ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, "triton"),
        ({"architectures": ["ResNetForImageClassification"], "model_type": "resnet"}, "ray"),
        ({"architectures": []}, "ray"),
        ({"architectures": "LlamaForCausalLM"}, "ray"),
    ],
)
def test_the_engine_and_why(
    configured: Callable[..., Path], config: dict[str, Any], runtime: str
) -> None:
    files = analyze(configured(**config))
    assert files.runtime == runtime
    assert len(files.runtime_reason) > 20


def test_gpus_that_fit_and_divide_the_heads(configured: Callable[..., Path]) -> None:
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "num_hidden_layers": 28,
        "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4,
        "intermediate_size": 18944, "vocab_size": 152064, "torch_dtype": "float32",
    }  # fmt: skip
    sizes = analyze(configured(**config)).tensor_parallel
    assert sizes["h100-80g"] == (1, 2, 4)
    assert sizes["l4-24g"] == (2, 4)  # 28 GiB of weights


def test_what_does_not_run_in_vllm_takes_one_gpu(tmp_path: Path) -> None:
    with (tmp_path / "model.onnx").open("wb") as file:
        file.truncate(30 << 30)
    sizes = analyze(tmp_path).tensor_parallel
    assert (sizes["l4-24g"], sizes["a100-40g"], sizes["b200-180g"]) == ((), (1,), (1,))


def test_a_folder_without_a_model_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"holds no model: expected config\.json"):
        analyze(tmp_path)


def test_what_is_not_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", "no\0ne", ""):
        with pytest.raises(ProfileError, match=r"holds no model|is not a folder"):
            analyze(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "nonsense", "[" * 50_000, '{"a": ' * 50_000])
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ProfileError, match=r"config\.json"):
        analyze(tmp_path)


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ProfileError, match="is not a file"):
        analyze(tmp_path)


def test_the_command_prints_what_people_ask_for(llama: Path) -> None:
    result = CliRunner().invoke(command, [str(llama)])
    assert result.exit_code == 0
    for text in ("LlamaForCausalLM", "BF16", "256 B per token (GQA)", "vllm", "h100-80g"):
        assert text in result.output
    assert "not known" not in result.output


def test_every_number_of_the_command_is_in_its_json(llama: Path) -> None:
    result = CliRunner().invoke(command, [str(llama), "--json"])
    values = json.loads(result.output)
    assert values == analyze(llama).as_dict()
    assert values["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 2
    assert values["tensor_parallel"]["h100-80g"] == [1, 2, 4]


def test_the_command_tells_experts_and_windows(configured: Callable[..., Path]) -> None:
    folder = configured(
        architectures=["MixtralForCausalLM"], num_hidden_layers=32, hidden_size=4096,
        num_attention_heads=32, num_key_value_heads=8, intermediate_size=14336, vocab_size=32000,
        num_local_experts=8, num_experts_per_tok=2, sliding_window=4096,
    )  # fmt: skip
    output = CliRunner().invoke(command, [str(folder)]).output
    assert "46.7 billion, 12.9 billion of them active" in output
    assert "128 KiB per token (GQA); 32 of 32 layers keep the last 4,096 tokens" in output
    assert "no weights" in output


def test_several_onnx_files_are_counted_together_and_said(tmp_path: Path) -> None:
    for name in ("encoder.onnx", "decoder.onnx"):
        (tmp_path / name).write_bytes(bytes(100))
    files = analyze(tmp_path)
    assert (files.files, files.weights_bytes) == (2, 200)
    assert "2 ONNX files are counted together" in files.unknown


def test_an_empty_weight_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ProfileError, match=r"model\.onnx is empty"):
        analyze(tmp_path)


def test_the_size_by_the_shape_of_a_quantized_model_is_said_to_be_too_much(
    configured: Callable[..., Path], llama_config: dict[str, Any]
) -> None:
    plain, packed = (
        analyze(configured(**llama_config, **more)).unknown[0]
        for more in ({}, {"quantization_config": {"quant_method": "awq", "bits": 4}})
    )
    assert packed == plain + ", but config.json says that they are quantized, thus fewer bytes"
