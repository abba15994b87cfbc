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

from collections.abc import Iterable
from typing import Literal, NamedTuple

from modelium.core import ClusterState, Done, Event, Instance
from modelium.policies.toolkit.eviction import OUT

AUTO: Literal["auto"] = "auto"
NEVER = float("inf")
SAME_S = 1e-3
"""Arrivals that are this near are one: the clock may go on between two readings."""


class _Look(NamedTuple):
    """What was found when it was last asked what swap would serve a request."""

    since_s: float
    """When the request came that waits longest."""
    again_s: float
    """When to look again."""
    gpus: tuple[str, ...]
    """It has waited long enough and is to have these next, but cannot yet."""


class Reservation(NamedTuple):
    """GPUs on which nothing begins but what one model waits for."""

    since_s: float
    """When the request came that waits longest."""
    model: str
    gpus: tuple[str, ...]

    def goes_before(self, state: ClusterState, model: str) -> bool:
        """`model` has not waited longer, and so may not take these GPUs."""
        if model == self.model:
            return False
        asked = state.demand[model]
        return not asked.waiting or _since_s(state, model) > self.since_s - SAME_S


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

    # How long who waits, and who stays

    def wait_s(self, enters_s: float, swaps_s: Iterable[float] = ()) -> float:
        """How long a request has to wait, if it takes so long to bring its copy in, others out."""
        return enters_s + sum(swaps_s) if self.after_s == AUTO else self.after_s

    def slice_s(self, swap_s: float) -> float:
        """How long a busy copy stays once it is ready, if it takes so long to leave and return."""
        return swap_s * (1 / self.swap_share - 1) if self.after_s == AUTO else 0.0

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
        key = model, waking.id if waking else ""
        if key not in self._looks:  # at times, forget those that wait no more
            self._looks = {old: look for old, look in self._looks.items() if _waits(state, old[0])}
        self._looks[key] = _Look(_since_s(state, model), again_s, gpus)

    def reserved(self, state: ClusterState, model: str) -> tuple[str, ...]:
        """The GPUs that `model` may not take, because another one has waited longer for them."""
        first = self.next(state)
        return first.gpus if first and first.goes_before(state, model) else ()

    def next(self, state: ClusterState) -> Reservation | None:
        """Who has waited longest for GPUs that are kept free for it, and which these are."""
        looks = [(look, key[0]) for key, look in self._looks.items() if look.gpus]
        waits = [(look.since_s, name, look.gpus) for look, name in looks if _waits(state, name)]
        return Reservation(*min(waits)) if waits else None

    # How long a drain takes

    def drain_s(self, copy: Instance) -> float:
        """How long `copy` should take to finish its requests: as the last drain of its model."""
        return self._drain_s.get(copy.model, 0.0) if copy.busy else 0.0

    def told(self, state: ClusterState, copy: Instance, leaves_s: float) -> None:
        """A busy copy was told to leave; once it has drained, that takes `leaves_s`."""
        self._drains = {n: drain for n, drain in self._drains.items() if n in state.instances}
        self._drains[copy.id] = copy.model, state.now_s, leaves_s

    def hear(self, state: ClusterState, event: Event) -> None:
        """Learn from the end of a drain, unless it failed or was refused."""
        if not self._drains or not isinstance(event, Done):
            return
        drain = self._drains.pop(getattr(event.action, "instance", ""), None)
        if drain and not event.error:
            model, begun_s, leaves_s = drain
            self._drain_s[model] = max(0.0, state.now_s - begun_s - leaves_s)


def _since_s(state: ClusterState, model: str) -> float:
    return state.now_s - state.demand[model].oldest_wait_s


def _waits(state: ClusterState, model: str) -> bool:
    """Somebody waits for `model`, and nothing that would serve it is there or on its way."""
    if model not in state.models or not state.demand[model].waiting:
        return False
    return all(copy.phase in OUT for copy in state.instances_of(model))
