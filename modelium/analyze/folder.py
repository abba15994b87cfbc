"""Everything that a folder of model files says, put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from modelium.analyze.exports import read_onnx, read_pickles, read_torchscript, read_triton
from modelium.analyze.reading import Weights, read_json
from modelium.analyze.runtime import suggest
from modelium.analyze.safetensors import read_index, read_safetensors
from modelium.analyze.shape import read_shape
from modelium.catalog import Architecture, GpuSpec, ModelSpec, gpus, tensor_parallel_sizes
from modelium.catalog.fleet import DEFAULT_SHARE
from modelium.catalog.serving import CONTEXT_BYTES
from modelium.errors import ProfileError

_KV_DTYPE_BYTES = 2
_DTYPE_BYTES = {"float32": 4, "float8_e4m3fn": 1}
_PACKED = ("I32", "I64", "U8")
"""Types in which checkpoints pack several weights of fewer bits."""
_MUCH = 0.1


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What a folder of model files says of the model; None and "" where it does not say."""

    path: str
    format: str
    files: int
    weights_bytes: int
    """On disk."""
    dtypes: Mapping[str, int]
    """Bytes by data type, largest first."""
    parameters: int | None
    architecture: str
    """The class in config.json, such as LlamaForCausalLM."""
    shape: Architecture | None
    runtime: str
    """vllm, triton or ray."""
    runtime_reason: str
    unknown: tuple[str, ...]
    """What could not be found out."""

    @property
    def spec(self) -> ModelSpec | None:
        """The model as an entry of the catalogue, if its shape and parameters are known."""
        if self.shape is None or not self.parameters:
            return None
        shape = {f.name: getattr(self.shape, f.name) for f in fields(Architecture)}
        return ModelSpec(
            **shape,
            name=Path(self.path).name,
            hf_id=self.path,
            params=self.parameters,
            dtype_bytes=self.weights_bytes / self.parameters,
            kv_dtype_bytes=_KV_DTYPE_BYTES,
        )

    @property
    def attention(self) -> str:
        """MHA, GQA, MQA, MLA or none (an encoder keeps no keys and values); "" if unknown."""
        shape = self.shape
        if shape is None:
            return ""
        if not shape.causal:
            return "none"
        if shape.kv_lora_rank:
            return "MLA"
        if shape.kv_heads == shape.heads:
            return "MHA"
        return "GQA" if shape.kv_heads > 1 else "MQA"

    @property
    def kv_bytes_per_token(self) -> int | None:
        """KV cache of one more token at two bytes a number, while no sliding window drops it."""
        return None if self.shape is None else self.shape.kv_values_per_token * _KV_DTYPE_BYTES

    @property
    def tensor_parallel(self) -> Mapping[str, tuple[int, ...]]:
        """For each GPU of the catalogue, how many of them can hold a copy, fewest first."""
        return {name: self.sizes_on(kind) for name, kind in gpus().items()}

    def sizes_on(self, kind: GpuSpec) -> tuple[int, ...]:
        """How many GPUs of a kind can hold a copy, fewest first; empty if none can."""
        if self.runtime == "vllm" and self.spec:
            return tensor_parallel_sizes(self.spec, kind, most=1 if kind.works_alone else 8)
        # The others put a copy on one GPU; what they hold beside the weights is not known.
        need = self.weights_bytes + CONTEXT_BYTES
        return (1,) if self.weights_bytes and need <= DEFAULT_SHARE * kind.memory_bytes else ()

    @property
    def max_context(self) -> int | None:
        """Tokens of the longest sequence."""
        return (self.shape.max_context or None) if self.shape else None

    def as_dict(self) -> dict[str, Any]:
        """Everything above as plain values, for JSON."""
        shape = self.shape
        return {
            "path": self.path,
            "format": self.format,
            "files": self.files,
            "weights_bytes": self.weights_bytes,
            "dtypes": dict(self.dtypes),
            "parameters": self.parameters,
            "active_parameters": self.spec.active_params if self.spec else None,
            "architecture": self.architecture or None,
            "attention": self.attention or None,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "max_context": self.max_context,
            "shape": shape and {f.name: getattr(shape, f.name) for f in fields(shape)},
            "runtime": self.runtime,
            "runtime_reason": self.runtime_reason,
            "tensor_parallel": {kind: list(sizes) for kind, sizes in self.tensor_parallel.items()},
            "unknown": list(self.unknown),
        }


def analyze(path: str | Path) -> ModelFiles:
    """What the model files in the folder `path` say: no weights are read, no pickle is opened.

    Raises ProfileError for a folder with no model in it, and for files that are wrong.
    """
    folder = Path(path)
    try:
        if not folder.is_dir():
            raise ProfileError(
                f"{folder} is not a folder; give the folder that holds the model's files"
            )
        return _analyze(folder)
    except OSError as error:
        raise ProfileError(f"cannot read {error.filename}: {error.strerror}") from None


def _analyze(folder: Path) -> ModelFiles:
    triton = read_triton(folder)
    config_file = folder / "config.json"
    config = read_json(config_file) if config_file.exists() else {}
    weights = triton or _weights(folder)
    if weights is None and not config:
        raise ProfileError(
            f"{folder} holds no model: expected config.json, *.safetensors, *.onnx, *.pt"
            " or config.pbtxt"
        )
    shape, notes = read_shape(config) if config else (None, ("its shape: there is no config.json",))
    weights = weights or _from_shape(shape, config)
    parameters, counting = _parameters(weights, shape)
    architecture = _architecture(config)
    runtime, reason = suggest(architecture, config, weights)
    if triton:
        runtime, reason = "triton", "it is a model of a Triton repository"
    return ModelFiles(
        path=str(folder),
        format=weights.format,
        files=weights.files,
        weights_bytes=weights.size_bytes,
        dtypes=weights.dtypes,
        parameters=parameters,
        architecture=architecture,
        shape=shape,
        runtime=runtime,
        runtime_reason=reason,
        unknown=(*notes, *weights.notes, *counting),
    )


def _weights(folder: Path) -> Weights | None:
    """The first kind of weights that is there, the safest first; or what an index says of them."""
    readers = (read_safetensors, read_onnx, read_torchscript, read_pickles, read_index)
    return next((found for read in readers if (found := read(folder))), None)


def _from_shape(shape: Architecture | None, config: Mapping[str, Any]) -> Weights:
    """The size that weights would have; they are not here."""
    if shape is None:
        return Weights("none", 0, 0, notes=("size of the weights: there are none here",))
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "")
    size = shape.counted_params * _DTYPE_BYTES.get(dtype, 2)
    note = f"size of the weights: there are none here; worked out for {dtype or 'two bytes each'}"
    if config.get("quantization_config"):
        note += ", but config.json says that they are quantized, thus fewer bytes"
    return Weights("none", 0, size, notes=(note,))


def _parameters(weights: Weights, shape: Architecture | None) -> tuple[int | None, tuple[str, ...]]:
    """Parameters by the headers, or else by the shape; and what to say of it."""
    packed = sum(weights.dtypes.get(dtype, 0) for dtype in _PACKED) > _MUCH * weights.size_bytes
    if weights.parameters and not packed:
        return weights.parameters, ()
    why = "the weights are packed" if packed else "the files do not say"
    if shape is None:
        return None, (f"parameters: {why}",)
    return shape.counted_params, (f"exact parameters: {why}; counted by the shape",)


def _architecture(config: Mapping[str, Any]) -> str:
    match config.get("architectures"):
        case [str(name), *_] if name.isidentifier():
            return name
    return ""
