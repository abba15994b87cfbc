"""`Draining`: when a busy copy has to make way, so that no request waits for ever.

A swap brings one copy in and takes others out; it costs the seconds that the first takes to load or
wake, and for each of the others those to leave and to come back. Two rules follow:

- *Wait.* A request waits until it has waited as long as the swap that would serve it costs (the
  rule of the ski rental: never more than twice the dearer of the two). Then idle and busy copies
  alike may leave for it.
- *Time slice.* A busy copy stays for at least `1/swap_share - 1` times its own part of that cost,
  counted from when it became ready. So of the time that a GPU serves copies that are always busy,
  at most `swap_share` goes into swaps.

If some of the copies in its way are still in their time slice, or a load is under way there, the
GPUs are reserved: nothing else begins on them. Of the models that wait so, the one whose request
came first has the reservation, so each gets its turn however many GPUs it needs.

Source: ski rental: Karlin, Manasse, Rudolph and Sleator, Algorithmica 3, 1988; time slices as in
gang scheduling, reservations as in backfilling (Lifka, JSSPP 1995).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from modelium.core import ClusterState, Done, Event, Instance, Sleep, Unload
from modelium.policies.room import COMING, OUT, READY

AUTO: Literal["auto"] = "auto"
NEVER = float("inf")
SAME_S = 1e-6
"""Arrivals that rounding brings apart by this much are one."""


class _Look(NamedTuple):
    """What was found when it was last asked what swap would serve a request."""

    since_s: float
    """When the request came that waits longest."""
    again_s: float
    """When to look again."""
    gpus: tuple[str, ...]
    """It has waited long enough and is to have these next, but cannot yet."""


class Draining:
    """Decides when busy copies may be drained for a request that waits.

    after_s: seconds that it has to wait; "auto": as long as the swap costs; inf: for ever.
    swap_share: largest share of a GPU's time that such swaps may take ("auto" only).
    """

    def __init__(self, after_s: float | Literal["auto"], swap_share: float) -> None:
        self.after_s, self.swap_share = after_s, swap_share
        self._looks: dict[tuple[str, str], _Look] = {}
        """By model, and by the copy that would be woken ("": by a load)."""
        self._drains: dict[str, tuple[str, float, float]] = {}
        """Model, begin and seconds to leave of each copy that was told to drain."""
        self._drain_s: dict[str, float] = {}
        """Seconds that the last drain of each model took."""

    @property
    def never(self) -> bool:
        """Only idle copies leave."""
        return self.after_s == NEVER

    # What a swap costs

    def swap_s(self, state: ClusterState, copy: Instance, level: int) -> float:
        """Seconds to take `copy` out of its GPUs, asleep at `level` or unloaded, and back.

        Its drain is not counted: until that ends it works.
        """
        costs = state.costs
        if level == 1:  # its weights come back as they went
            return 2 * costs.sleep_s(copy.id, 1)
        leaves_s = costs.sleep_s(copy.id, level) if level else costs.unload_s(copy.id)
        return leaves_s + costs.load_s(copy.model, copy.gpus)

    def leaves_s(self, state: ClusterState, copy: Instance, level: int) -> float:
        """Seconds until `copy` has left its GPUs, if it drains as long as the last of its model."""
        costs = state.costs
        leaves_s = costs.sleep_s(copy.id, level) if level else costs.unload_s(copy.id)
        return leaves_s + (self._drain_s.get(copy.model, 0.0) if copy.busy else 0.0)

    def wait_s(self, enters_s: float, swaps_s: Iterable[float] = ()) -> float:
        """How long a request has to wait, if it takes so long to bring its copy in, others out."""
        return enters_s + sum(swaps_s) if self.after_s == AUTO else self.after_s

    def free_at_s(
        self, state: ClusterState, copy: Instance, swap_s: Callable[[Instance], float]
    ) -> float:
        """When `copy` may leave for a request that has waited long enough."""
        stay_s = state.limits.min_residency_s
        slice_s = 0.0
        if self.after_s == AUTO and (copy.busy or copy.phase in COMING):
            slice_s = swap_s(copy) * (1 / self.swap_share - 1)
        if copy.phase in COMING:
            return state.now_s + max(stay_s, slice_s) + state.costs.load_s(copy.model, copy.gpus)
        if copy.phase is READY:
            return copy.ready_since_s + max(stay_s, slice_s)
        return state.now_s

    # Whose turn it is

    def looks_again_s(
        self, state: ClusterState, model: str, waking: Instance | None
    ) -> float | None:
        """When to ask again what swap would serve the oldest request; None if it never was."""
        found = self._looks.get((model, waking.id if waking else ""))
        if found is None or abs(found.since_s - _since_s(state, model)) > SAME_S:
            return None
        return found.again_s

    def look_again(
        self,
        state: ClusterState,
        model: str,
        waking: Instance | None,
        again_s: float,
        gpus: tuple[str, ...] = (),
    ) -> None:
        """No swap may begin before `again_s`; `gpus` are those that the request shall have next."""
        self._looks = {key: look for key, look in self._looks.items() if _waits(state, key[0])}
        key = model, waking.id if waking else ""
        self._looks[key] = _Look(_since_s(state, model), again_s, gpus)

    def reserved(self, state: ClusterState, model: str = "") -> tuple[str, ...]:
        """The GPUs that `model` may not take, because another one has waited longer for them."""
        waits = [
            (look.since_s, key)
            for key, look in self._looks.items()
            if look.gpus and _waits(state, key[0])
        ]
        if not waits:
            return ()
        _, key = min(waits)
        return () if key[0] == model else self._looks[key].gpus

    # How long a drain takes

    def told(self, state: ClusterState, action: Unload | Sleep) -> None:
        """A busy copy was told to leave."""
        costs, name = state.costs, action.instance
        sleeps = isinstance(action, Sleep)
        leaves_s = costs.sleep_s(name, action.level) if sleeps else costs.unload_s(name)  # type: ignore[union-attr]
        self._drains = {n: drain for n, drain in self._drains.items() if n in state.instances}
        self._drains[name] = state.instances[name].model, state.now_s, leaves_s

    def hear(self, state: ClusterState, event: Event) -> None:
        """Learn from the end of a drain."""
        if self._drains and isinstance(event, Done) and event.instance in self._drains:
            model, begun_s, leaves_s = self._drains.pop(event.instance)
            self._drain_s[model] = max(0.0, state.now_s - begun_s - leaves_s)


def _since_s(state: ClusterState, model: str) -> float:
    return state.now_s - state.demand[model].oldest_wait_s


def _waits(state: ClusterState, model: str) -> bool:
    """Somebody waits for `model`, and nothing that would serve it is there or on its way."""
    if model not in state.models or not state.demand[model].waiting:
        return False
    return all(copy.phase in OUT for copy in state.instances_of(model))
