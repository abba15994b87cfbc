"""A configuration as a live cluster takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelium.catalog import BatchLimits
from modelium.config import schema
from modelium.config.planning.plan import Plan
from modelium.config.values import said
from modelium.errors import ConfigError

if TYPE_CHECKING:
    from modelium.config.planning.engines import Engines
    from modelium.control.costs import Links, Stages
    from modelium.live.settings import LiveInput, Served


def live_input(
    config: schema.Config, plan: Plan, *, emulate: bool = False, sleeps: bool = True
) -> LiveInput:
    """What `LiveCluster` takes; with `emulate` every model is served by an emulated engine.

    `sleeps`: the policy may put engines to sleep.

    Raises ConfigError for a model that no runtime can serve.
    """
    from modelium.config.planning.engines import Engines
    from modelium.control.costs import ConfiguredFacts
    from modelium.live.engines.backoff import Patience
    from modelium.live.requests.dispatcher import DispatchSettings
    from modelium.live.settings import Deadlines, LiveInput, Retention

    engines = Engines(plan.models, plan.hardware.by_kind())
    asked, live = plan.simulation.settings(), config.live
    models = [
        served(config, plan, engines, name, emulate=emulate, sleeps=sleeps) for name in plan.models
    ]
    hurried = {one.model.name for one in models if one.runtime == "emulated"}
    return LiveInput(
        nodes=list(plan.hardware.nodes),
        gpus=list(plan.hardware.gpus),
        devices=plan.hardware.devices,
        served=models,
        work=engines.work_s,
        facts=ConfiguredFacts(
            by_model={
                name: _faster(one.stages, config.emulated.speed if name in hurried else 1.0)
                for name, one in plan.models.items()
            },
            by_node=_links(plan, config.emulated.speed if len(hurried) == len(models) else 1.0),
        ),
        limits=asked.limits,
        dispatch=DispatchSettings(
            router=asked.router,
            queue_limit=config.gateway.queue_limit,
            max_wait_s=config.gateway.max_wait,
            places=config.gateway.places,
            rate_window_s=asked.rate_window_s,
        ),
        patience=Patience(
            live.load_tries, live.retry_first, live.retry_most, forgive_s=live.forgive
        ),
        deadlines=Deadlines(
            load_s=live.load_deadline,
            sleep_s=live.sleep_deadline,
            wake_s=live.wake_deadline,
            stop_grace_s=live.stop_grace,
            memory_back_s=live.memory_back,
            probe_every_s=live.probe_every,
            stall_s=live.stall,
            shutdown_s=live.shutdown,
        ),
        retention=Retention(live.keep, live.keep_logs),
        share=plan.hardware.share,
    )


def served(
    config: schema.Config,
    plan: Plan,
    engines: Engines,
    name: str,
    *,
    emulate: bool = False,
    sleeps: bool = True,
) -> Served:
    """One model with its runtime and that one's settings. Raises ConfigError."""
    from modelium.live.settings import Served
    from modelium.managers.runtimes import CAN_SLEEP
    from modelium.managers.settings import problem

    entry, model = config.models[name], plan.models[name].model
    path = config.repository / entry.path if entry.path else None
    runtime = "emulated" if emulate else entry.runtime or _runtime(config, name, path)
    if runtime == "emulated":
        settings = _emulated(config, plan, engines, name)
    elif path is None:
        raise ConfigError(f"models.{name}: {runtime} needs the model's files; give `path`")
    elif runtime == "vllm":
        settings = _vllm(config, plan, engines, name)
    else:
        settings = {**entry.settings, "env": dict(entry.env)}
    if runtime != "emulated" and (found := problem(runtime, entry.settings)):
        raise ConfigError(f"models.{name}.settings.{found[0]}: {found[1]}")
    can_sleep = runtime in CAN_SLEEP
    if runtime == "vllm":
        can_sleep = _sleep_mode(config, settings, sleeps)
    batch = _batch(plan, engines, name) if runtime in ("vllm", "emulated") else None
    most = batch.max_num_seqs if batch else None
    model = replace(model, can_sleep=can_sleep)
    server = _server(config, runtime)
    files = plan.models[name].files
    return Served(model, runtime, path and path.resolve(), settings, most, server, files)


def _server(config: schema.Config, runtime: str) -> dict[str, Any]:
    """What the runtime itself is started with; vLLM's variables are those of each engine."""
    if runtime == "vllm":
        return {"environment": config.vllm.environment}
    if runtime == "triton":
        return {"environment": config.triton.environment, "env": config.triton.env}
    if runtime == "ray":
        return {"environment": config.ray.environment, "env": config.ray.env}
    return {}


def _runtime(config: schema.Config, name: str, path: Path | None) -> str:
    if config.emulated.enabled:
        return "emulated"
    if path is None:
        raise ConfigError(
            f"models.{name}: nothing says where its files are; give `path`, or set"
            " emulated: {enabled: true} to try things with no engine at all"
        )
    from modelium.analyze import analyze

    return analyze(path).runtime


def _vllm(config: schema.Config, plan: Plan, engines: Engines, name: str) -> dict[str, Any]:
    """vLLM's own names; flags and environment of all models, then the model's own.

    The size of its steps is said though nobody asked for one: vLLM's defaults depend on the GPU and
    the release, and then simulation, gateway and engine would each count with another. Models of
    sentence-transformers are left to vLLM: some have to have their longest input in one step.
    """
    entry, batch = config.models[name], _batch(plan, engines, name)
    sentences = entry.path and (config.repository / entry.path / "modules.json").exists()
    return {
        **(asdict(batch) if batch and not sentences else {}),
        **said(plan.models[name].vllm),
        **entry.settings,
        "flags": [*config.vllm.flags, *entry.flags],
        "env": {**config.vllm.env, **entry.env},
    }


def _batch(plan: Plan, engines: Engines, name: str) -> BatchLimits | None:
    """What a simulation counts with; None for models that are not generated token by token."""
    from modelium.sim.spec import Generate

    engine = engines.engine(name, plan.hardware.kinds()[0])
    if not isinstance(engine, Generate):
        return None
    return BatchLimits(engine.max_num_seqs, max(engine.max_num_seqs, engine.max_batched_tokens))


def _sleep_mode(config: schema.Config, settings: dict[str, Any], sleeps: bool) -> bool:
    """Whether an engine of vLLM has to be started so that it can sleep."""
    if (said := settings.get("enable_sleep_mode")) is not None:
        return bool(said)
    if "--enable-sleep-mode" in settings["flags"]:
        return True
    return sleeps if config.vllm.sleep_mode is None else config.vllm.sleep_mode


def sleep_clashes(config: schema.Config, environment: Mapping[str, str]) -> list[str]:
    """Settings of PyTorch's allocator under which vLLM's sleep mode does not work everywhere.

    `environment` is the server's own; engines inherit it.
    """
    places = {
        "the environment of modelium": environment,
        "vllm.env": config.vllm.env,
        **{f"models.{name}.env": entry.env for name, entry in config.models.items()},
    }
    return [
        f"{name}={given[name]} ({place}) clashes with vLLM's sleep mode: older releases do not"
        " start with both, newer ones switch it off for the memory that sleeps. Leave it out, or"
        " set vllm: {sleep_mode: false}"
        for place, given in places.items()
        for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
        if "expandable_segments:true" in given.get(name, "").replace(" ", "").lower()
    ]


def _emulated(config: schema.Config, plan: Plan, engines: Engines, name: str) -> dict[str, Any]:
    """The same engine that a simulation would use, and the same stages of a load."""
    from modelium.sim.spec import Generate

    one = plan.models[name]
    kind = plan.hardware.kinds()[0]
    engine = engines.engine(name, kind)
    stages = one.stages
    weights_s = one.model.weights_bytes / _rate(plan, one.model.gpus)
    values, longest = asdict(engine), {}
    if isinstance(engine, Generate) and (limit := values.pop("max_model_len")):
        longest = {"max_model_len": limit}
    return {
        "engine": {"kind": "generate" if isinstance(engine, Generate) else "infer"} | values,
        **longest,
        "stages": {
            "process": stages.process_s + stages.tokenizer_s,
            "weights": weights_s,
            "compile": stages.compile_s + stages.profile_s,
            "first_compile": stages.first_compile_s + stages.profile_s,
            "graphs": stages.graphs_s,
        },
        "sleep_s": _by_level(stages.sleep_s),
        "wake_s": _by_level(stages.wake_s),
        "speed": config.emulated.speed,
        **config.models[name].settings,
    }


def _faster(stages: Stages, speed: float) -> Stages:
    """Stages of engines that are emulated at another speed."""
    if speed == 1.0:
        return stages
    changes: dict[str, Any] = {
        field.name: (value[0] / speed, value[1] / speed)
        if isinstance(value, tuple)
        else value / speed
        for field in fields(stages)
        for value in [getattr(stages, field.name)]
    }
    return replace(stages, **changes)


def _links(plan: Plan, speed: float) -> dict[str, Links]:
    """The links of each node, at the speed of the engines that load over them."""
    return {
        node: replace(
            links,
            disk_bytes_per_s=links.disk_bytes_per_s * speed,
            pcie_bytes_per_s=links.pcie_bytes_per_s * speed,
            loader_bytes_per_s=links.loader_bytes_per_s * speed,
        )
        for node, links in plan.hardware.links.items()
    }


def _by_level(seconds: tuple[float, float]) -> dict[str, float]:
    return {str(level): each for level, each in enumerate(seconds, 1)}


def _rate(plan: Plan, gpus: int) -> float:
    from modelium.control.costs import Links, weights_rate
    from modelium.core import Tier

    links = next(iter(plan.hardware.links.values()), Links())
    return weights_rate(links, Tier.DISK, gpus)
