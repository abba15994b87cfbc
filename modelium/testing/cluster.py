"""`check_cluster`: what every cluster must keep, simulated or live."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from modelium.control.rules import refusal
from modelium.core import (
    Action,
    Cluster,
    ClusterState,
    Done,
    Event,
    Gpu,
    Load,
    Miss,
    Model,
    Move,
    Node,
    Phase,
    Remind,
    Sleep,
    Tick,
    Unload,
    Wake,
)  # fmt: skip
from modelium.testing.assertions import claim
from modelium.testing.scenarios import model, nodes_of

LONG_S = 600.0
"""More than any transition or request in these scripts takes."""


class Harness(Cluster, Protocol):
    """A cluster under test, with hands on its clock and its users."""

    @property
    def finished(self) -> int:
        """How many requests were answered so far."""

    def submit(self, model: str) -> None:
        """A small request for `model` arrives now; it takes well under `LONG_S`."""

    def run(self, seconds: float) -> None:
        """Let this much of the cluster's time pass, and tell of all that happens."""


Make = Callable[[Sequence[Model], Sequence[Gpu], Sequence[Node]], Harness]


def check_cluster(make: Make) -> None:
    """Drive clusters that `make(models, gpus, nodes)` returns by scripts and check the contract.

    Claims: `start` returns before its `Done` is told, and `Done` always follows, with the words of
    `rules.refusal` if the action was refused; actions on a GPU take place in their order; `Miss` is
    offered again after every `Done` and when an instance falls idle; load, sleep, wake, move and
    unload do what they say; free and held bytes add up to the capacity at every event; what leaves
    takes no new requests but finishes those that it has; every request is answered once.
    Raises AssertionError that says which claim is broken.
    """
    for script in SCRIPTS:
        script(make)


class Script:
    """One cluster, what it told, and short words to drive it."""

    def __init__(self, make: Make, models: Sequence[Model], *gpus: int) -> None:
        self.gpus, nodes = nodes_of(*gpus)
        self.cluster = make(models, self.gpus, nodes)
        self.state: ClusterState = self.cluster.state
        self.heard: list[Event] = []
        self.heard_s: list[float] = []
        """When, by the cluster's clock."""
        self.starting = False
        self.asked = 0
        self.cluster.listen(self.hear)

    def hear(self, event: Event) -> None:
        claim(not self.starting, f"{event} was told before start had returned")
        self.heard.append(event)
        self.heard_s.append(self.state.now_s)
        for gpu in self.gpus:
            held = sum(copy.bytes_per_gpu for copy in self.state.instances_on(gpu.id))
            free = self.state.free_bytes(gpu.id)
            claim(
                held + free == gpu.memory_bytes,
                f"{gpu.id}: {held} bytes held and {free} free are not {gpu.memory_bytes}",
            )

    def start(self, *actions: Action) -> None:
        for action in actions:
            self.starting = True
            self.cluster.start(action)
            self.starting = False

    def submit(self, name: str) -> None:
        self.asked += 1
        self.cluster.submit(name)

    def ends(self, *actions: Action) -> list[Done]:
        """Start actions and return the `Done` of each, once all have ended."""
        begin = len(self.heard)
        self.start(*actions)
        self.cluster.run(LONG_S)
        done = [event for event in self.heard[begin:] if isinstance(event, Done)]
        for action in actions:
            times = sum(end.action == action for end in done)
            claim(times == 1, f"{action} was followed by {times} Done events, not by one")
        return [next(end for end in done if end.action == action) for action in actions]

    def succeed(self, *actions: Action) -> list[str]:
        """Let actions succeed and return the instances that they made or changed."""
        ends = self.ends(*actions)
        for end in ends:
            claim(not end.error, f"{end.action} failed: {end.error}")
            claim(bool(end.instance), f"{end} does not name its instance")
        return [end.instance for end in ends]

    def ready(self, name: str, *gpus: str) -> str:
        """Load a model and return its instance, which is ready."""
        [instance] = self.succeed(Load(name, gpus, "needed by the script, step 1"))
        claim(self.phase(instance) is Phase.READY, f"{instance} was loaded but is not ready")
        return instance

    def phase(self, instance: str) -> Phase | None:
        copy = self.state.instances.get(instance)
        return copy.phase if copy else None

    def all_answered(self) -> None:
        self.cluster.run(LONG_S)
        claim(
            self.cluster.finished == self.asked,
            f"{self.asked} requests were sent, {self.cluster.finished} answered",
        )

    def misses(self, name: str, begin: int) -> int:
        return sum(event == Miss(name) for event in self.heard[begin:])


def _load_and_serve(make: Make) -> None:
    script = Script(make, [model("a", 20), model("b", 20)], 1)
    script.submit("a")
    script.cluster.run(0.0)
    claim(script.misses("a", 0) == 1, "a request for a model with no instance was no miss")
    instance = script.ready("a", "n0g0")
    script.all_answered()
    copy = script.state.instances[instance]
    claim(not copy.busy and copy.served == 1, f"{instance} answered but is busy, or served != 1")
    script.submit("a")
    script.all_answered()
    claim(script.misses("a", 0) == 1, "a request for a model that is ready was a miss")


def _refuse(make: Make) -> None:
    elsewhere = model("elsewhere", 8, gpus_allowed=frozenset({"n0g1"}))
    script = Script(make, [model("a", 50), model("pinned", 8, pinned=True), elsewhere], 1)
    pinned = script.ready("pinned", "n0g0")
    instance = script.ready("a", "n0g0")
    script.submit("a")
    for action in (
        Load("nobody", ("n0g0",), "wrong 1"),
        Load("a", ("n0g7",), "wrong 2"),
        Load("a", ("n0g0",), "wrong 3: no room"),
        Unload(pinned, "wrong 4"),
        Wake(instance, "wrong 5"),
        Sleep(instance, 3, "wrong 6"),
        Move(instance, ("n0g0",), "wrong 7"),
        Unload("nobody#1", "wrong 8"),
        Load("elsewhere", ("n0g0",), "wrong 9: not allowed there"),
    ):
        words = refusal(script.state, action, script.state.limits)
        begin = len(script.heard)
        script.start(action)
        script.cluster.run(0.0)
        told = [e for e in script.heard[begin:] if isinstance(e, Done) and e.action == action]
        claim(len(told) == 1, f"{action} is not legal; {len(told)} Done events followed, not one")
        claim(told[0].error == words, f"{action} was refused by {told[0].error!r}, not {words!r}")
    script.all_answered()


def _unload_then_load(make: Make) -> None:
    script = Script(make, [model("a", 60), model("b", 60)], 1)
    old = script.ready("a", "n0g0")
    swap = Unload(old, "swap 1"), Load("b", ("n0g0",), "swap 2")
    _, new = script.succeed(*swap)
    claim(script.phase(old) is None, f"{old} was unloaded but is there still")
    claim(script.phase(new) is Phase.READY, f"{new} was loaded behind an unload but is not ready")


def _miss_again(make: Make) -> None:
    script = Script(make, [model("a", 60), model("b", 60), model("c", 5)], 1, 1)
    first = script.ready("a", "n0g0")
    script.submit("a")
    script.submit("b")
    script.cluster.run(0.0)
    begin = len(script.heard)
    script.cluster.run(LONG_S)
    claim(not script.state.instances[first].busy, f"{first} did not finish its request")
    claim(script.misses("b", begin) > 0, "an instance fell idle and the miss was not offered again")
    begin = len(script.heard)
    script.ready("c", "n1g0")
    claim(script.misses("b", begin) > 0, "an action was done and the miss was not offered again")
    script.succeed(Unload(first, "script 1"), Load("b", ("n0g0",), "script 2"))
    script.all_answered()


def _sleep_and_wake(make: Make) -> None:
    script = Script(make, [model("a", 60), model("b", 60)], 1)
    instance = script.ready("a", "n0g0")
    for level in (1, 2):
        script.succeed(Sleep(instance, level, "script 1"))
        copy = script.state.instances[instance]
        claim(copy.phase is Phase.ASLEEP, f"{instance} was put to sleep but is {copy.phase}")
        claim(copy.sleep_level == level, f"{instance} sleeps at {copy.sleep_level}, not {level}")
        pinned = script.state.models["a"].weights_bytes if level == 1 else 0
        claim(copy.host_bytes == pinned, f"{instance} asleep holds {copy.host_bytes} of host RAM")
        script.submit("a")
        script.cluster.run(0.0)
        claim(Miss("a") in script.heard, "a request for a sleeping model was no miss")
        script.succeed(Wake(instance, "script 2"))
        copy = script.state.instances[instance]
        awake = copy.phase is Phase.READY and copy.sleep_level == 0 and copy.host_bytes == 0
        claim(awake, f"{instance} was woken but is {copy.phase}, level {copy.sleep_level}")
        script.all_answered()


def _move(make: Make) -> None:
    script = Script(make, [model("a", 60)], 2)
    old = script.ready("a", "n0g0")
    script.submit("a")
    [new] = script.succeed(Move(old, ("n0g1",), "script 1"))
    script.all_answered()
    claim(script.phase(old) is None, f"{old} was moved but is there still")
    there = [copy.gpus for copy in script.state.instances_of("a")]
    claim(there == [("n0g1",)], f"after the move of {old} to n0g1, {new} is on {there}")


def _drain(make: Make) -> None:
    script = Script(make, [model("a", 60)], 2)
    old = script.ready("a", "n0g0")
    new = script.ready("a", "n0g1")
    for _ in range(6):
        script.submit("a")
    served = script.state.instances[old].served
    leaving = Unload(old, "script 1", drain=True)
    script.start(leaving)
    for _ in range(6):
        script.submit("a")
    copy = script.state.instances.get(old)
    claim(copy is None or copy.served == served, f"{old} was leaving and took new requests")
    script.all_answered()
    ends = [e for e in script.heard if isinstance(e, Done) and e.action == leaving]
    claim(len(ends) == 1 and not ends[0].error, f"{old} was drained, and this was told: {ends}")
    claim(script.state.instances[new].served == 12 - served, f"{new} did not get all new requests")


def _remind(make: Make) -> None:
    script = Script(make, [model("a", 60)], 1)
    at_s = script.state.now_s + 5.0
    script.start(Remind(at_s, "script 1"))
    script.cluster.run(6.0)
    claim(Tick() in script.heard, "a reminder did not come")
    told_s = script.heard_s[script.heard.index(Tick())]
    # A millisecond, as far as timers of event loops are exact.
    claim(told_s > at_s - 1e-3, f"a reminder for {at_s} s came too early, at {told_s} s")


SCRIPTS = (
    _load_and_serve,
    _refuse,
    _unload_then_load,
    _miss_again,
    _sleep_and_wake,
    _move,
    _drain,
    _remind,
)
