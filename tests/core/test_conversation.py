"""What a policy hears, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from modelium.control.policy_channel import DECLINES, PolicyChannel
from modelium.control.state import Copy, FrozenMeters
from modelium.core import Done, Event, Fault, Miss, Phase, Unload


class Table:
    """A conversation with models that wait, and a policy that notes what it hears."""

    def __init__(self, *hungry: str) -> None:
        self.hungry = list(hungry)
        self.open = True
        self.heard: list[Event] = []
        self.answer: Callable[[Event], None] = lambda event: None
        self.closed: set[str] = set()
        self.channel = PolicyChannel(self, lambda: 0.0, lambda say: say(), self._may_begin)
        self.channel.listen(self._hear)

    def _may_begin(self, gpus: Iterable[str] | None) -> bool:
        return self.open and (gpus is None or not self.closed.issuperset(gpus))

    def _hear(self, event: Event) -> None:
        self.heard.append(event)
        self.answer(event)

    def hungry_models(self) -> list[str]:
        return list(self.hungry)

    def is_hungry(self, model: str) -> bool:
        return model in self.hungry

    def serve(self, event: Event) -> None:
        """Answer a miss by an action, as good policies do."""
        if isinstance(event, Miss):
            self.hungry.remove(event.model)
            self.channel.acted()

    def offered(self) -> list[str]:
        return [event.model for event in self.heard if isinstance(event, Miss)]


END = Done(Unload("x#1", ""), "", "x#1")
REFUSED = Done(Unload("x#1", ""), "it is busy", "")


def test_after_a_change_each_model_that_waits_is_offered_again() -> None:
    table = Table("a", "b", "c")
    table.answer = table.serve
    table.channel.tell(END)
    assert sorted(table.offered()) == ["a", "b", "c"]
    assert not table.channel.unasked


def test_a_refusal_is_no_change() -> None:
    table = Table("a")
    table.channel.tell(REFUSED)
    assert table.offered() == []


def test_while_no_load_may_begin_nothing_is_offered_again_and_then_all_is() -> None:
    table = Table("a", "b")
    table.open = False
    table.channel.tell(Fault("gpu0", "lost"))
    assert table.offered() == []
    assert table.channel.unasked
    table.open = True
    table.answer = table.serve
    table.channel.tell(END)
    assert sorted(table.offered()) == ["a", "b"]


def test_a_round_of_offers_ends_with_the_last_place_for_a_load() -> None:
    table = Table("a", "b", "c")

    def take(event: Event) -> None:
        table.serve(event)
        table.open = not isinstance(event, Miss)

    table.answer = take
    table.channel.tell(END)
    assert table.offered() == ["a"]
    assert table.channel.unasked


def test_a_new_miss_is_heard_though_no_load_may_begin() -> None:
    table = Table("a")
    table.open = False
    table.channel.tell(Miss("a"))
    assert table.offered() == ["a"]


def test_after_some_in_vain_the_rest_waits_and_is_asked_at_another_turn() -> None:
    names = [f"m{k}" for k in range(2 * DECLINES)]
    table = Table(*names)
    for _ in names:
        table.channel.tell(END)
    assert len(table.offered()) == DECLINES * len(names)
    assert set(table.offered()) == set(names)
    table.heard.clear()
    table.channel.offer_to_all()
    assert sorted(table.offered()) == names


def test_no_model_is_asked_twice_in_a_round() -> None:
    for n in range(1, DECLINES + 1):
        table = Table(*(f"m{k}" for k in range(n)))
        for rounds in range(1, 2 * DECLINES):
            table.channel.tell(END)
            assert sorted(table.offered()) == sorted(table.hungry * rounds)


def test_an_idle_copy_is_offered_where_a_load_may_begin_until_it_leaves() -> None:
    table = Table("a", "b", "c")
    copy = Copy("x#1", "x", ("gpu0", "gpu1"), "node0", FrozenMeters(), Phase.READY)
    table.closed = {"gpu0", "gpu1"}
    table.channel.fell_idle(copy)
    assert table.offered() == []
    table.closed = {"gpu0"}

    def evict(event: Event) -> None:
        table.serve(event)
        copy.phase = Phase.LEAVING

    table.answer = evict
    table.channel.fell_idle(copy)
    assert table.offered() == ["a"]
    assert table.channel.unasked
