"""What an emulated engine is told: its timing, as plain JSON numbers.

{"model": "llama-8b", "speed": 10, "stages": {"process": 3, "weights": 6, "graphs": 4},
 "engine": {"kind": "generate", "kv_tokens": 100000, "step": {"decode_c": 0.007, ...}}}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any, TypeVar

from modelium.errors import ConfigError, did_you_mean

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Seconds of one iteration: the same coefficients and formula as a simulation's `StepTime`."""

    decode_c: float
    decode_lo: float = 0.0
    decode_hi: float = 0.0
    decode_hinge: int = 0
    decode_kv: float = 0.0
    mixed_c: float = 0.0
    mixed_lo: float = 0.0
    mixed_hi: float = 0.0
    mixed_hinge: int = 0
    mixed_decode: float = 0.0
    mixed_prefill: float = 0.0
    mixed_kv: float = 0.0
    mixed_ctx: float = 0.0
    mixed_sq: float = 0.0
    interference: float = 0.0
    """Read and not used: an engine does not see its neighbours."""
    decode_bends: tuple[tuple[int, float], ...] = ()

    def decode_s(self, decoding: int, context: int) -> float:
        """An iteration of `decoding` sequences with `context` tokens in all and no prefill."""
        low, high = self.decode_lo, self.decode_hi
        base = self.decode_c + _hinged(decoding, low, high, self.decode_hinge)
        bends = sum(change * max(decoding - at, 0) for at, change in self.decode_bends)
        return base + bends + self.decode_kv * context

    def mixed_s(
        self, tokens: int, decoding: int, context: int, chunks: list[tuple[int, int]]
    ) -> float:
        """An iteration with prefill: `chunks` are (tokens computed, tokens already there)."""
        low, high = self.mixed_lo, self.mixed_hi
        base = self.mixed_c + _hinged(tokens, low, high, self.mixed_hinge)
        base += self.mixed_decode * decoding + self.mixed_kv * context
        base += self.mixed_prefill * len(chunks)
        return base + sum(self.mixed_ctx * c * x + self.mixed_sq * c * c for c, x in chunks)


def _hinged(x: int, low: float, high: float, hinge: int) -> float:
    return low * min(x, hinge) + high * max(x - hinge, 0)


@dataclass(frozen=True, slots=True)
class Generate:
    """A continuous-batching engine; its fields mean what they mean in a simulation."""

    step: StepCosts
    kv_tokens: int
    max_num_seqs: int = 256
    max_batched_tokens: int = 8192
    block_tokens: int = 16
    prefix_caching: bool = False
    """Read and not used: the emulation computes every prompt."""
    watermark_blocks: int = 0
    max_model_len: int | None = None
    """Bounds the specification's own, where it is given."""


@dataclass(frozen=True, slots=True)
class Infer:
    """An engine that answers whole batches; its fields mean what they mean in a simulation."""

    latency_s: tuple[tuple[float, ...], ...]
    per_token_s: float = 0.0
    max_delay_s: float = 0.0
    servers: int = 1
    exclusive: bool = True
    """Read and not used: an engine does not see its neighbours."""
    fixed_s: float = 0.0
    interference: float = 0.0
    """Read and not used, likewise."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One emulated engine. All seconds are divided by `speed`; "inf" waits for nothing."""

    model: str
    engine: Generate | Infer
    host: str = "127.0.0.1"
    port: int = 0
    """0: any free one."""
    stages: Mapping[str, float] = field(default_factory=dict)
    """Seconds of a start by stage, in order."""
    sleep_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds to fall asleep, by level ("1", "2"); a level that is missing takes none."""
    wake_s: Mapping[str, float] = field(default_factory=dict)
    max_model_len: int = 8192
    """Prompt and output; lowered to what the KV pool holds."""
    default_output_tokens: int = 64
    """Length of a chat answer whose client sets no limit."""
    asleep_bytes: int = 0
    """What it pretends to keep of each pretended GPU while asleep; 0: what is predicted."""
    embedding_size: int = 32
    seed: int = 0
    speed: float = 1.0
    fault: str = ""
    """Only with --faults: fail_start, slow_start or out_of_memory."""


def parse(given: Any) -> Spec:
    """Check a specification read from JSON. Raises ConfigError that names the field."""
    values = dict(_mapping(given, "the specification"))
    values["engine"] = _engine(values.get("engine"))
    for name in ("stages", "sleep_s", "wake_s"):
        times = _mapping(values.get(name, {}), name)
        values[name] = {key: _number(value, f"{name}.{key}") for key, value in times.items()}
    spec = _fill(Spec, values, "")
    if not spec.model or not isinstance(spec.model, str):
        raise ConfigError(f"model is {spec.model!r}: it has to be the name that clients use")
    if not spec.speed > 0:
        raise ConfigError(f'speed is {spec.speed!r}: it has to be above 0, or "inf"')
    if isinstance(spec.engine, Generate):
        size = spec.engine.block_tokens
        longest = spec.engine.max_model_len or spec.max_model_len
        room = min(spec.max_model_len, longest, spec.engine.kv_tokens // size * size)
        if room < 2:
            raise ConfigError(f"a KV pool of {spec.engine.kv_tokens} tokens serves nothing")
        return dataclasses.replace(spec, max_model_len=room)
    return spec


def _engine(given: Any) -> Generate | Infer:
    values = dict(_mapping(given, "engine"))
    kind = values.pop("kind", None)
    if kind == "generate":
        step = dict(_mapping(values.get("step"), "engine.step"))
        step["decode_bends"] = tuple((int(at), float(x)) for at, x in step.get("decode_bends", ()))
        values["step"] = _fill(StepCosts, step, "engine.step.")
        engine = _fill(Generate, values, "engine.")
        if min(engine.kv_tokens, engine.max_num_seqs, engine.max_batched_tokens) < 1:
            raise ConfigError(
                "engine: kv_tokens, max_num_seqs and max_batched_tokens are 1 or more"
            )
        if engine.block_tokens < 1:
            raise ConfigError(f"engine.block_tokens is {engine.block_tokens}: it is 1 or more")
        return engine
    if kind == "infer":
        rows = values.get("latency_s")
        if not isinstance(rows, list | tuple) or not rows or not all(rows):
            raise ConfigError("engine.latency_s is a list of stages, each seconds by batch size")
        where = "engine.latency_s"
        values["latency_s"] = tuple(tuple(_number(x, where) for x in row) for row in rows)
        infer = _fill(Infer, values, "engine.")
        if infer.servers < 1:
            raise ConfigError(f"engine.servers is {infer.servers}: it is 1 or more")
        return infer
    raise ConfigError(f'engine.kind is {kind!r}: it is "generate" or "infer"')


def _fill(cls: type[T], given: Mapping[str, Any], where: str) -> T:
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name, value in given.items():
        if name not in fields:
            raise ConfigError(f"{where}{name} is unknown.{did_you_mean(name, fields)}")
        if fields[name].type in ("int", "float"):
            number = _number(value, f"{where}{name}")
            given = {**given, name: int(number) if fields[name].type == "int" else number}
    for name, known in fields.items():
        if name not in given and known.default is known.default_factory is MISSING:
            raise ConfigError(f"{where}{name} is missing")
    return cls(**given)


def _number(value: Any, where: str) -> float:
    if value == "inf":
        return float("inf")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{where} is {value!r}: it has to be a number")
    return value


def _mapping(given: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where} is {given!r}: it has to be an object")
    return given
