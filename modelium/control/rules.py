"""What is legal in a state. Both clusters ask here, so both refuse alike, in the same words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from modelium.core import (
    AWAKE,
    Action,
    ClusterState,
    Instance,
    Load,
    Model,
    Move,
    Phase,
    Remind,
    Sleep,
    Unload,
    Wake,
)  # fmt: skip
from modelium.core import Limits as Limits  # re-exported: whoever asks for a refusal needs it
from modelium.errors import did_you_mean
from modelium.units import counted, format_bytes, format_seconds, listed

MOST_SHOWN = 8
"""GPUs that a message lists."""


def refusal(state: ClusterState, action: Action, limits: Limits) -> str:
    """Say why `action` is not legal now, or return an empty string if it is."""
    match action:
        case Load(model, gpus):
            return _load(state, model, gpus, action.kv_bytes, limits)
        case Unload():
            return _known(state, action.instance) or _unload(state, action, limits)
        case Sleep():
            return _known(state, action.instance) or _sleep(state, action, limits)
        case Wake(instance):
            return _known(state, instance) or _wake(state, state.instances[instance], limits)
        case Move(instance, gpus):
            return _known(state, instance) or _move(state, state.instances[instance], gpus, limits)
        case Remind():
            return ""


def may_begin(state: ClusterState, limits: Limits, gpus: Iterable[str] | None = None) -> bool:
    """Whether one of `gpus` (None: of all) has fewer loads and wakes under way than it may have."""
    if len(state.coming()) >= limits.loads_at_once:
        return False
    working, most = state.gpus, limits.loads_at_once_per_gpu
    for gpu in working if gpus is None else gpus:  # not any(...): it is asked at every miss
        if gpu in working and state.coming_on(gpu) < most:
            return True
    return False


def never_fits(state: ClusterState, model: str, whole: Mapping[str, int] | None = None) -> str:
    """Say why `model` can never run on these GPUs, or return an empty string if it can.

    `whole` has the bytes of GPUs that are offered only in part while others use them.
    """
    why = fits_nowhere(state, model, whole)
    return f"{why}. It can never run here." if why else ""


def fits_nowhere(state: ClusterState, model: str, whole: Mapping[str, int] | None = None) -> str:
    """Say why `model` fits on no GPUs, were they empty; an empty string if it fits."""
    spec, whole = state.models[model], whole or {}
    need = spec.bytes_per_gpu()
    allowed = [gpu for gpu in state.gpus.values() if spec.may_use(gpu.id)]
    sizes = {gpu.id: whole.get(gpu.id, gpu.memory_bytes) for gpu in allowed}
    by_node: dict[str, int] = {}
    for gpu in allowed:
        by_node[gpu.node] = by_node.get(gpu.node, 0) + (sizes[gpu.id] >= need)
    if max(by_node.values(), default=0) >= spec.gpus:
        return ""
    largest = max(sizes.values(), default=0)
    on = f"each of {spec.gpus} GPUs of one node" if spec.gpus > 1 else "a GPU"
    if spec.gpus_allowed is None:
        among = "the largest GPU here"
    else:
        among = f"it may use {bound_to(spec)} only"
        if not allowed:
            return f"{model} needs {format_bytes(need)} on {on}; {among}, none of which works now"
        among += ", the largest of which"
    return f"{model} needs {format_bytes(need)} on {on}; {among} offers {format_bytes(largest)}" + (
        f" and no node has {spec.gpus} that large" if largest >= need else ""
    )


def bound_to(model: Model) -> str:
    """The GPUs that a bound model may use, in words."""
    gpus = sorted(model.gpus_allowed or (), key=lambda gpu: (len(gpu), gpu))
    return listed(gpus, MOST_SHOWN)


def _load(
    state: ClusterState, model: str, gpus: tuple[str, ...], kv_bytes: int | None, limits: Limits
) -> str:
    if model not in state.models:
        return f"no model called {model!r}.{did_you_mean(model, state.models)}"
    spec = state.models[model]
    copies = _staying(state, model)
    if len(copies) >= spec.max_replicas:
        return f"{model} has its {spec.max_replicas} copies already"
    return (
        _place(state, model, gpus)
        or _spread(state, model, gpus, copies)
        or _room(state, gpus, spec.bytes_per_gpu(kv_bytes))
        or _slots(state, gpus, limits)
    )


def _place(state: ClusterState, model: str, gpus: tuple[str, ...]) -> str:
    for gpu in gpus:
        if gpu not in state.gpus:
            return f"no working GPU called {gpu!r}.{did_you_mean(gpu, state.gpus)}"
    spec = state.models[model]
    want = spec.gpus
    for gpu in gpus:
        if not spec.may_use(gpu):
            return f"{model} may not use {gpu}, only {bound_to(spec) or 'none'}"
    if not len(gpus) == len(set(gpus)) == want:
        return f"{model} needs {want} different GPUs, got {', '.join(gpus) or 'none'}"
    nodes = {state.gpus[gpu].node for gpu in gpus}
    if len(nodes) > 1:
        return f"{model} needs its {want} GPUs on one node, got {', '.join(sorted(nodes))}"
    return ""


def _spread(state: ClusterState, model: str, gpus: tuple[str, ...], copies: list[Instance]) -> str:
    if not state.models[model].spread:
        return ""
    node = state.gpus[gpus[0]].node
    for copy in copies:
        if copy.gpus[0] in state.gpus and state.gpus[copy.gpus[0]].node == node:
            return f"{model} may have one copy per node; {copy.id} is on {node}"
    return ""


def _room(state: ClusterState, gpus: tuple[str, ...], need: int) -> str:
    for gpu in gpus:
        room = state.free_bytes(gpu) + state.freeing_bytes(gpu)
        if need > room:
            return f"needs {format_bytes(need)} on {gpu}, {format_bytes(max(room, 0))} is free"
    return ""


def _slots(state: ClusterState, gpus: tuple[str, ...], limits: Limits) -> str:
    if (coming := len(state.coming())) >= limits.loads_at_once:
        return f"{coming} loads are under way, {limits.loads_at_once} allowed"
    for gpu in gpus:
        if state.coming_on(gpu) >= limits.loads_at_once_per_gpu:
            return f"{gpu} is loading already, {limits.loads_at_once_per_gpu} allowed at a time"
    return ""


def _staying(state: ClusterState, model: str) -> list[Instance]:
    return [copy for copy in state.instances_of(model) if copy.phase is not Phase.LEAVING]


def _known(state: ClusterState, instance: str) -> str:
    if instance in state.instances:
        return ""
    return f"no instance called {instance!r}.{did_you_mean(instance, state.instances)}"


def _goes(state: ClusterState, copy: Instance, drain: bool, limits: Limits) -> str:
    if copy.phase not in (Phase.READY, Phase.ASLEEP):
        return f"{copy.id} is {copy.phase}"
    if state.models[copy.model].pinned:
        return f"{copy.model} is pinned"
    if copy.busy and not drain:
        return f"{copy.id} is busy with {counted(copy.running + copy.waiting, 'request')}"
    stayed_s = state.now_s - copy.ready_since_s
    if copy.phase is Phase.READY and stayed_s < limits.min_residency_s:
        return (
            f"{copy.id} is ready for {format_seconds(stayed_s)} only, "
            f"it stays at least {format_seconds(limits.min_residency_s)}"
        )
    return ""


def _unload(state: ClusterState, action: Unload, limits: Limits) -> str:
    copy = state.instances[action.instance]
    return _goes(state, copy, action.drain, limits) or _needed(state, copy)


def must_stay(state: ClusterState, copy: Instance) -> str:
    """Say why `copy` has to be there whoever asks for its model, or return an empty string."""
    if state.models[copy.model].pinned:
        return f"{copy.model} is pinned"
    return _needed(state, copy)


def _needed(state: ClusterState, copy: Instance) -> str:
    least = state.models[copy.model].min_replicas
    if not least or copy.phase is Phase.ASLEEP:
        return ""
    have = sum(other.phase in AWAKE for other in state.instances_of(copy.model))
    return "" if have > least else f"{copy.model} keeps at least {least} copies, it has {have}"


def _sleep(state: ClusterState, action: Sleep, limits: Limits) -> str:
    copy = state.instances[action.instance]
    if action.level not in (1, 2):
        return f"sleep level {action.level} is neither 1 nor 2"
    if copy.phase is Phase.ASLEEP:
        return f"{copy.id} is asleep"
    if not state.models[copy.model].can_sleep:
        return f"{copy.model} cannot be put to sleep, only unloaded: what runs it has no sleep mode"
    if why := _goes(state, copy, action.drain, limits) or _needed(state, copy):
        return why
    size = state.models[copy.model].weights_bytes
    node = state.gpus[copy.gpus[0]].node
    if action.level == 1 and size > state.host_free_bytes(node):
        free = format_bytes(state.host_free_bytes(node))
        return f"{copy.id} needs {format_bytes(size)} of {node}'s RAM to sleep, {free} is free"
    return ""


def _wake(state: ClusterState, copy: Instance, limits: Limits) -> str:
    if copy.phase is not Phase.ASLEEP:
        return f"{copy.id} is {copy.phase}, not asleep"
    need = copy.awake_bytes_per_gpu - copy.bytes_per_gpu
    return _room(state, copy.gpus, need) or _slots(state, copy.gpus, limits)


def _move(state: ClusterState, copy: Instance, gpus: tuple[str, ...], limits: Limits) -> str:
    if set(gpus) == set(copy.gpus):
        return f"{copy.id} is on {', '.join(gpus)} already"
    return _goes(state, copy, True, limits) or may_replace(state, copy, gpus, limits)


def may_replace(state: ClusterState, copy: Instance, gpus: tuple[str, ...], limits: Limits) -> str:
    """Say why no copy may be loaded on `gpus` in the place of a ready one, or return "".

    `gpus` may be those of `copy`, which stays until the new one is ready.
    """
    if copy.phase is not Phase.READY:
        return f"{copy.id} is {copy.phase}"
    need = state.models[copy.model].bytes_per_gpu()
    others = [other for other in _staying(state, copy.model) if other.id != copy.id]
    return (
        _place(state, copy.model, gpus)
        or _spread(state, copy.model, gpus, others)
        or _room(state, gpus, need)
        or _slots(state, gpus, limits)
    )
