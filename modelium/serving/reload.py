"""The configuration, read again while the server runs: taken up as a whole, or not at all.

All of it is checked first, in a thread; what follows on the loop cannot fail. Copies of models that
are removed or replaced go in order, after that.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from modelium.config import Config, make_plan
from modelium.config.access import access_notes
from modelium.config.changes import differences, keeping, needs_restart
from modelium.core import Tick
from modelium.errors import ConfigError, ModeliumError
from modelium.live.admin import AdminService
from modelium.live.cluster import LiveCluster
from modelium.live.reconfigure import ModelChanges, compare, exchange
from modelium.live.requests.interface import CONFLICT, RefusedError
from modelium.serving.gateway_factory import GatewayFactory
from modelium.serving.launch_spec import LaunchSpec, Stamp, stamp
from modelium.serving.managers import Managers
from modelium.serving.prepare import Prepared, prepare
from modelium.serving.served_models import ServedModels

if TYPE_CHECKING:
    from modelium.live.control_loop import ControlLoop

_ONLY_SIMULATED = "simulation."
_LIVE_TOO = ("simulation.limits", "simulation.rate_window", "simulation.router")


@dataclass
class _Checked:
    """A configuration that can be taken up."""

    order: LaunchSpec
    made: Prepared
    front: GatewayFactory
    known: list[str]
    """Models of the repository when it was read."""


class Reload:
    """Takes up what has changed in the configuration's file."""

    def __init__(
        self,
        asked: LaunchSpec,
        used: LaunchSpec,
        stock: ServedModels,
        managers: Managers,
        cluster: LiveCluster,
        driver: ControlLoop,
        operations: AdminService,
        front: GatewayFactory,
    ) -> None:
        """`asked` is the order as read, `used` has the GPUs that were found in its place."""
        self._asked, self._used, self._stock, self._managers = asked, used, stock, managers
        self._cluster, self._driver, self._operations = cluster, driver, operations
        self._front = front
        self._one_at_a_time = asyncio.Lock()
        self.seen = _seen(asked, front)
        """How `look` found the files when they were read last, whatever came of it."""

    def look(self) -> list[Stamp | None]:
        """How the files look now whose changes it would take up."""
        file = self._asked.file
        return [*([stamp(file)] if file else []), *map(stamp, self._front.files)]

    async def __call__(self) -> dict[str, Any]:
        """Read the file again; says what changed. Raises RefusedError (409) if nothing did.

        `why` is the line for people, `changed` and `restart` are keys as in the file.
        """
        async with self._one_at_a_time:
            self.seen = self.look()
            try:
                told = await self._reload()
            except (ModeliumError, OSError) as error:
                why = f"nothing is changed: {error}"
                self._cluster.tell_news("reload-refused", why=why)
                raise RefusedError(CONFLICT, why) from None
            self._cluster.tell_news("reloaded", **told)
            return told

    async def take_up(self) -> None:
        """The same for nobody who waits for it: news tell what changed, or why nothing did."""
        with contextlib.suppress(RefusedError):
            await self()

    async def _reload(self) -> dict[str, Any]:
        if self._asked.again is None:
            raise ConfigError("the server was started without a configuration file")
        while True:
            asked = await self._cluster.call(self._asked.again)
            checked = await self._cluster.call(self._check, asked)
            if checked.known == self._stock.stored_names:  # else one has come in meanwhile
                break
        if why := self._cluster.dispatcher.closed:
            raise ConfigError(why)
        changes = compare(self._cluster, checked.made.given)
        return self._take_up(asked, checked, changes)

    def _check(self, asked: LaunchSpec) -> _Checked:
        """Make all that the new configuration needs. Raises ModeliumError."""
        config = keeping(self._used.config, asked.config)
        order = replace(asked, config=config)
        known = self._stock.stored_names
        made = prepare(order, make_plan(config), self._managers)
        access_notes(config)  # its file of keys can be read
        return _Checked(order, made, GatewayFactory(config), known)

    def _take_up(
        self, asked: LaunchSpec, checked: _Checked, changes: ModelChanges
    ) -> dict[str, Any]:
        old, new = self._asked.config, asked.config
        restart = needs_restart(old, new)
        keys = [key for key in differences(old, new) if key not in restart and _matters(key)]
        made, before, after = checked.made, self._used, checked.order
        notes = [note for note in made.stock.notes if note not in self._stock.notes]
        self._stock.become(made.stock)
        # What comes later is known to that stock alone which goes on.
        exchange(self._cluster, replace(made.given, work=self._stock.work_s), changes)
        renewed = self._front.change(checked.front)
        self.seen = _seen(asked, checked.front)
        if _decided_by(before) != _decided_by(after):
            self._operations.policy = after.policy
            self._driver.exchange(made.policy)
        # What needs a restart is told again the next time.
        self._asked = replace(asked, config=keeping(old, new))
        self._used = checked.order
        for name in changes.removed:
            self._cluster.spawn(self._operations.withdraw(name))
        for name in changes.replaced:
            self._operations.replace(name, "its settings changed")
        self._cluster.tell(Tick())  # there may be models to load at once: pinned ones
        keys = [key for key in keys if not key.startswith("models.")]
        if before.policy == after.policy:
            policies = ""
        else:
            policies = f"policy {before.policy} -> {after.policy}"
            keys = [key for key in keys if key != "policy"]
        parts = [
            _listed("models added", changes.added),
            _listed("models removed", changes.removed),
            _listed("models replaced", changes.replaced),
            _listed("models adjusted", changes.adjusted),
            policies,
            _listed("changed", keys),
            "the TLS certificate" * renewed,
            _listed("only a restart changes", restart),
            *notes,
        ]
        said = "; ".join(filter(None, parts)) or "nothing has changed"
        return {
            "why": said,
            **asdict(changes),
            "changed": keys,
            "policy": after.policy,
            "restart": restart,
            "notes": notes,
        }


def _seen(asked: LaunchSpec, front: GatewayFactory) -> list[Stamp | None]:
    return [*([asked.read] if asked.file else []), *front.seen]


def _decided_by(order: LaunchSpec) -> tuple[str, Config | object]:
    """What the policy is made of."""
    return order.policy, order.config.orchestration


def _matters(key: str) -> bool:
    """Not one of those that only simulations read."""
    return not key.startswith(_ONLY_SIMULATED) or key.startswith(_LIVE_TOO)


def _listed(what: str, names: Sequence[str]) -> str:
    return f"{what}: {', '.join(names)}" if names else ""
