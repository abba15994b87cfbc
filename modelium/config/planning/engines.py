"""How fast each model is on each kind of GPU, from what is configured and what is published."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from modelium import catalog
from modelium.catalog import GpuSpec
from modelium.config.planning.models import Served
from modelium.config.planning.profiles import same_work
from modelium.core import Model
from modelium.errors import ConfigError
from modelium.sim.profiles import Profile, roofline_profile, step_time
from modelium.sim.spec import Engine, Generate, Infer, StepTime

GOOD_BATCH = 32
"""Sequences that decode together where there is enough to do."""
ENCODER_BATCH = 32
"""Largest batch of an encoder."""


class Engines:
    """Engine and work of each model by kind of GPU; says where each figure is from."""

    def __init__(self, models: Mapping[str, Served], gpus: Mapping[str, GpuSpec]) -> None:
        """`gpus` by kind."""
        self._models, self._gpus = models, gpus
        self.engine = cache(self._engine)
        self.profile = cache(self._profile)

    def __call__(self, model: Model, gpu: str) -> Engine:
        """The engine of `model` on GPUs of a kind."""
        return self.engine(model.name, gpu)

    def work_s(self, model: Model, gpu: str, prompt_tokens: float, output_tokens: float) -> float:
        """GPU-seconds that one request takes of one of the copy's GPUs at a good batch size."""
        engine = self.engine(model.name, gpu)
        if isinstance(engine, Infer):
            return _answer_s(engine, prompt_tokens)
        return _generate_s(engine, prompt_tokens, output_tokens)

    def _engine(self, name: str, gpu: str) -> Engine:
        served = self._models[name]
        if served.infer is not None:
            return served.infer.engine()
        step = self.profile(name, gpu).step
        model = served.model
        if not model.kv_bytes_per_token:
            # Every token at the price past the hinge: at most that much too slow for small batches.
            return Infer(((step.mixed_c,) * ENCODER_BATCH,), per_token_s=step.mixed_hi)
        tokens = model.kv_bytes // model.kv_bytes_per_token
        context = served.spec.max_context if served.spec else None
        return served.vllm.engine(step, tokens, context)

    def _profile(self, name: str, gpu: str) -> Profile:
        served = self._models[name]
        if gpu in served.profiles:
            return served.profiles[gpu].profile()
        if served.spec is None:
            raise ConfigError(f"models.{name}: nothing says how fast it is")
        for known in catalog.models().values():
            if same_work(known, served.spec):
                return step_time(known.name, self._gpus[gpu], served.model.gpus)
        return roofline_profile(served.spec, self._gpus[gpu], served.model.gpus)


def _answer_s(engine: Infer, tokens: float) -> float:
    """The largest batch is the best one; a pipeline's stages are on GPUs of their own."""
    stages = engine.latency_s
    return sum(row[-1] / len(row) for row in stages) / len(stages) + engine.per_token_s * tokens


def _generate_s(engine: Generate, prompt_tokens: float, output_tokens: float) -> float:
    """Its share of full prefill steps, and of decode steps of `GOOD_BATCH` sequences."""
    step, context = engine.step, prompt_tokens + output_tokens / 2
    fitting = int(engine.kv_tokens / max(prompt_tokens + output_tokens, 1))
    batch = max(1, min(GOOD_BATCH, engine.max_num_seqs, fitting))
    prefill_s = _mixed_s(step, engine.max_batched_tokens) / engine.max_batched_tokens
    decode_s = _decode_s(step, batch, batch * context) / batch
    attention_s = step.mixed_sq * prompt_tokens**2
    return prefill_s * prompt_tokens + attention_s + decode_s * output_tokens


def _decode_s(step: StepTime, sequences: int, context: float) -> float:
    past = max(sequences - step.decode_hinge, 0)
    bends = sum(change * max(sequences - at, 0) for at, change in step.decode_bends)
    slope = step.decode_lo * min(sequences, step.decode_hinge) + step.decode_hi * past
    return step.decode_c + slope + bends + step.decode_kv * context


def _mixed_s(step: StepTime, tokens: int) -> float:
    past = max(tokens - step.mixed_hinge, 0)
    return step.mixed_c + step.mixed_lo * min(tokens, step.mixed_hinge) + step.mixed_hi * past
