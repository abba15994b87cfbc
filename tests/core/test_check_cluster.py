"""The fake cluster conforms, and the suite finds what a cluster may get wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from modelium.core import Action, Done, Miss, Move, Phase, Remind, Sleep, Unload, drive
from modelium.policies.lru import Lru
from modelium.testing import FakeCluster, check_cluster
from modelium.testing.fake_transitions import FakeTransitions


def test_the_fake_cluster_conforms() -> None:
    check_cluster(FakeCluster)


def test_drive_materialises_the_answer_before_it_starts_anything() -> None:
    order: list[str] = []

    class Cluster:
        state = None

        def listen(self, hear: Any) -> None:
            self.hear = hear

        def start(self, action: Any) -> None:
            order.append(f"start {action}")

    class Policy:
        def decide(self, state: Any, event: Any) -> Any:
            for k in (1, 2):
                order.append(f"decide {k}")
                yield k

    cluster: Any = Cluster()
    drive(cluster, Policy())
    cluster.hear(None)
    assert order == ["decide 1", "decide 2", "start 1", "start 2"]


class TellsAtOnce(FakeCluster):
    def start(self, action: Action) -> None:
        super().start(action)
        self._deliver()


class SwallowsRefusals(FakeCluster):
    def tell(self, event: Any) -> None:
        if not (isinstance(event, Done) and event.error):
            super().tell(event)


class OtherWords(FakeCluster):
    def tell(self, event: Any) -> None:
        wrong = isinstance(event, Done) and event.error
        super().tell(Done(event.action, "no") if wrong else event)


class NeverOffersAgain(FakeCluster):
    def offer(self) -> None:
        pass


class OffersOnlyAfterActions(FakeCluster):
    def _answered(self, name: str, service_s: float) -> None:
        offer, self.offer = self.offer, lambda: None  # type: ignore[method-assign]
        super()._answered(name, service_s)
        self.offer = offer  # type: ignore[method-assign]


class NoReminders(FakeCluster):
    def start(self, action: Action) -> None:
        if not isinstance(action, Remind):
            super().start(action)


class EarlyReminders(FakeCluster):
    def start(self, action: Action) -> None:
        if isinstance(action, Remind):
            action = Remind(action.at_s - 2.0, "early")
        super().start(action)


class LosesRequests(FakeCluster):
    def submit(self, model: str, service_s: float | None = None) -> None:
        if self.submitted % 3 != 2:
            super().submit(model, service_s)
        else:
            self.submitted += 1


class WrongBooks(FakeCluster):
    def tell(self, event: Any) -> None:
        super().tell(event)
        for copy in self.state._copies.values():
            copy.bytes_per_gpu += 1


class StaysReady(FakeCluster):
    """What leaves goes on taking requests until it is gone."""

    def dispatch(self, model: str) -> None:
        for copy in self.state._copies.values():
            if copy.model == model and copy.phase is Phase.LEAVING and copy.busy:
                asked = self.demand[model]
                while asked.queue:
                    self.meters[copy.id].queue.append(asked.queue.popleft()[1])
                    self.meters[copy.id].served += 1
        super().dispatch(model)


def _skipping(kind: type) -> Callable[..., FakeCluster]:
    class Lazy(FakeCluster):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            begin = self.works.begin

            def lie(action: Action) -> None:
                if isinstance(action, kind):
                    self.tell(Done(action, "", getattr(action, "instance", "")))
                else:
                    begin(action)

            self.works.begin = lie  # type: ignore[method-assign]

    return Lazy


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (TellsAtOnce, "before start had returned"),
        (SwallowsRefusals, "0 Done events followed, not one"),
        (OtherWords, "was refused by 'no', not"),
        (NeverOffersAgain, "the miss was not offered again"),
        (OffersOnlyAfterActions, "fell idle and the miss was not offered again"),
        (NoReminders, "a reminder did not come"),
        (EarlyReminders, "came too early"),
        (LosesRequests, "answered"),
        (WrongBooks, "bytes held and"),
        (StaysReady, "was leaving and took new requests"),
        (_skipping(Unload), "swap 2.*failed: needs 68.0 GiB"),
        (_skipping(Sleep), "was put to sleep but is ready"),
        (_skipping(Move), "was moved but is there still"),
    ],
)
def test_the_suite_finds_each_breach(make: Callable[..., FakeCluster], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_cluster(make)


def test_nobody_overtakes_on_a_gpu_that_waits_for_memory() -> None:
    from modelium.core import Limits, Load
    from modelium.testing.scenarios import model, nodes_of

    gpus, nodes = nodes_of(1)
    limits = Limits(loads_at_once_per_gpu=9)
    cluster = FakeCluster(
        [model("a", 60), model("b", 60), model("c", 4)], gpus, nodes, limits=limits
    )
    done: list[Done] = []
    cluster.listen(lambda event: done.append(event) if isinstance(event, Done) else None)
    cluster.start(Load("a", ("n0g0",)))
    cluster.run(100.0)
    for action in (Unload("a#1"), Load("b", ("n0g0",)), Load("c", ("n0g0",))):
        cluster.start(action)
    cluster.run(0.5)
    held = {name: cluster.works._held[name] for name in cluster.state.instances}
    assert held["b#2"] == held["c#3"] == 0  # c would fit beside a, but b asked first
    cluster.run(100.0)
    assert [type(event.action).__name__ for event in done] == ["Load", "Unload", "Load", "Load"]
    assert not any(event.error for event in done)


def test_a_lost_gpu_sends_its_requests_back_and_fails_what_was_under_way() -> None:
    from modelium.testing.scenarios import model, nodes_of

    gpus, nodes = nodes_of(2)
    cluster = FakeCluster([model("a", 60), model("b", 60)], gpus, nodes, service_s=30.0)
    heard: list[Any] = []
    policy = Lru()

    def hear(event: Any) -> None:
        heard.append(event)
        for action in tuple(policy.decide(cluster.state, event)):
            cluster.start(action)

    cluster.listen(hear)
    for _ in range(3):
        cluster.submit("a")
    cluster.run(70.0)
    busy = next(iter(cluster.state.instances.values()))
    assert busy.running == 1
    cluster.submit("b")
    cluster.run(1.0)
    cluster.lose("n0g0")
    cluster.lose("n0g1")
    assert cluster.demand["a"].waiting + cluster.finished == 3
    cluster.run(1.0)
    assert any(isinstance(e, Done) and e.error == "n0g1 was lost" for e in heard)
    cluster.regain("n0g0")
    cluster.run(1000.0)
    assert cluster.finished == 4
    assert Miss("b") in heard
    assert isinstance(cluster.works, FakeTransitions)
