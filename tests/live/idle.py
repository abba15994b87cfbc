"""A cluster whose policy leaves all to the test."""

from __future__ import annotations

from collections.abc import Iterable

from modelium.core import Action, ClusterState, Event, Load
from modelium.live.admin import AdminService
from modelium.live.engines.gpus import PretendInventory, Reading
from modelium.managers.emulated.manager import EmulatedManager
from modelium.managers.engine import Engine, EngineError
from modelium.testing.scenarios import model
from tests.live.harness import INSTANT
from tests.live.house import House

FOR_EVER = {**INSTANT, "stages": {"process": 0.0, "weights": 1000.0}, "speed": 1.0}
A = model("a", 60)
TWO = [A, model("b", 60)]
WHOLE = {"n0g0": 0}


class Idle:
    """Leaves all to the test."""

    def decide(self, state: ClusterState, event: Event) -> Iterable[Action]:
        return ()


async def loaded(here: House, name: str = "a") -> str:
    """Load a model by hand; the name of its instance."""
    here.cluster.start(Load(name, ("n0g0",), "the test"))
    await here.until(lambda: here.phases(name) == ["ready"])
    return next(copy.id for copy in here.cluster.state.instances_of(name))


def operations(here: House) -> AdminService:
    return AdminService(here.cluster, here.driver, "idle")


class Told(PretendInventory):
    """What a driver would tell: the memory of processes, whoever started them."""

    pretend = False
    broken = 0

    def read(self) -> dict[int, Reading]:
        if self.broken:
            self.broken -= 1
            raise OSError("no such device")
        return super().read()


class Survives(EmulatedManager):
    """Engines that nothing can end, for as long as they are immortal."""

    immortal = True

    def stop(self, engine: Engine, grace_s: float = 10.0) -> None:
        if self.immortal:
            raise EngineError(f"{engine.instance} survives")
        super().stop(engine, grace_s)
