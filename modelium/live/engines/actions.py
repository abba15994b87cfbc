"""The first step of every action: what changes in the books at once, and the steps that follow."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modelium.control.rules import refusal
from modelium.control.state import Copy
from modelium.core import Action, Decision, Load, Move, Phase, Sleep, Unload, Wake
from modelium.live.engines.transitions import Transitions
from modelium.managers.runtimes import CAN_SLEEP

if TYPE_CHECKING:
    from modelium.live.context import LiveContext


def begin(
    cluster: LiveContext, transitions: Transitions, action: Action, line: Decision
) -> tuple[Copy, Coroutine[Any, Any, None]]:
    """Enter a legal action into the books; gives the copy that it is about, and its steps."""
    state = cluster.state
    match action:
        case Load(model, gpus):
            gpus = _elsewhere(cluster, action, line)
            copy = _new_copy(cluster, model, gpus, action.kv_bytes)
            line.instance, line.gpus = copy.id, copy.gpus
            return copy, transitions.load(copy, line)
        case Move(instance, gpus):
            old = state.copy(instance)
            copy = _new_copy(cluster, old.model, gpus, None)
            line.instance = copy.id
            return copy, transitions.move(old, copy, line)
        case Unload(instance):
            copy = cluster.lifecycle.close(state.copy(instance), Phase.LEAVING)
            return copy, transitions.unload(copy, line)
        case Sleep(instance, level):
            copy = state.copy(instance)
            if why := cannot_sleep(cluster, copy):
                line.reason += f"; unloaded: {why}"
                cluster.lifecycle.close(copy, Phase.LEAVING)
                return copy, transitions.unload(copy, line)
            size = state.models[copy.model].weights_bytes if level == 1 else 0
            cluster.lifecycle.close(copy, Phase.SUSPENDING, host_bytes=size, sleep_level=level)
            return copy, transitions.sleep(copy, line, level)
        case Wake(instance):
            copy = state.copy(instance)
            state.change(copy, Phase.WAKING, bytes_per_gpu=copy.awake_bytes_per_gpu)
            return copy, transitions.wake(copy, line)
    raise TypeError(f"{action!r} is not an action")


def cannot_sleep(cluster: LiveContext, copy: Copy) -> str:
    """Say why a copy's engine cannot be put to sleep, or return an empty string if it can."""
    engine = cluster.engines.get(copy.id)
    runtime = engine.runtime if engine else cluster.served[copy.model].runtime
    if runtime not in CAN_SLEEP:
        return f"{runtime} cannot put {copy.model} to sleep, only unload it"
    if engine is not None and not engine.extra.get("sleep_mode", True):
        return (
            f"{copy.id} was started without vLLM's sleep mode, because the policy puts nothing to"
            " sleep: set vllm: {sleep_mode: true} and load it anew"
        )
    return ""


def _new_copy(
    cluster: LiveContext, model: str, gpus: tuple[str, ...], kv_bytes: int | None
) -> Copy:
    state, name = cluster.state, cluster.new_name(model)
    spec = state.models[model]
    node = state.gpus[gpus[0]].node
    copy = Copy(name, model, gpus, node, cluster.dispatcher.open_meters(name, model))
    copy.bytes_per_gpu = spec.bytes_per_gpu(kv_bytes)
    copy.extra_bytes = copy.bytes_per_gpu - spec.bytes_per_gpu()
    state.add(copy)
    return copy


def _elsewhere(cluster: LiveContext, action: Load, line: Decision) -> tuple[str, ...]:
    """The policy's GPUs; after a failure there another one, if it has room."""
    state, gpus = cluster.state, action.gpus
    trouble = cluster.failures.of(action.model)
    if trouble is None or trouble.out_of_memory or trouble.gpus.isdisjoint(gpus):
        return gpus
    if len(gpus) > 1:
        return gpus
    for other in state.gpus:
        instead = replace(action, gpus=(other,))
        if other in trouble.gpus or refusal(state, instead, state.limits):
            continue
        line.reason += f"; {gpus[0]} failed it before, {other} instead"
        return instead.gpus
    return gpus
