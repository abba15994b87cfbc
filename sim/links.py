"""Disk and PCIe links of a node, shared by the transfers that are under way at the same time.

Bandwidth is shared max-min fairly (progressive filling; Bertsekas and Gallager, Data Networks,
section 6.5.2): all rates grow together until a link is full or a transfer reaches what its loader
can do; those stop, the others go on. Rates change only when a transfer starts or ends.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import simpy

from modelium.control.costs import Links
from modelium.units import PS_PER_S


@dataclass(eq=False, slots=True)
class _Transfer:
    left_bytes: float
    cap: float
    """Bytes per second that its loader reaches at most."""
    use: dict[str, float]
    """Share of its rate that runs over each link."""
    done: simpy.Event
    rate: float = 0.0


@dataclass
class NodeLinks:
    """The links of one node."""

    env: simpy.Environment
    spec: Links
    positions: dict[str, int]
    """Place of each GPU on the node: neighbours share a PCIe switch."""
    _transfers: list[_Transfer] = field(default_factory=list)
    _since_ps: int = 0
    _timer: int = 0

    def __post_init__(self) -> None:
        switches = {gpu: k // self.spec.gpus_per_switch for gpu, k in self.positions.items()}
        self._down = {gpu: f"pcie{switch}" for gpu, switch in switches.items()}
        self._up = {gpu: f"up{switch}" for gpu, switch in switches.items()}

    def move(
        self,
        size_bytes: float,
        gpus: tuple[str, ...],
        *,
        disk: bool = False,
        loader: bool = False,
        up: bool = False,
    ) -> Generator[Any, Any, None]:
        """Move `size_bytes` from RAM or `disk` to these GPUs, or `up` from them to RAM.

        `loader` says that an engine's weight loader limits the speed, not only the links. PCIe is
        full duplex: what goes up does not slow down what comes.
        """
        use: dict[str, float] = {"disk": 1.0} if disk else {}
        switches = self._up if up else self._down
        for gpu in gpus:
            switch = switches[gpu]
            use[switch] = use.get(switch, 0.0) + 1.0 / len(gpus)
        per_gpu = self.spec.pcie_bytes_per_s
        if loader:
            per_gpu = min(per_gpu, self.spec.loader_bytes_per_s)
        transfer = _Transfer(size_bytes, per_gpu * len(gpus), use, self.env.event())
        if size_bytes <= 0:
            return
        self._settle()
        self._transfers.append(transfer)
        self._pace()
        try:
            yield transfer.done
        finally:
            if transfer in self._transfers:  # interrupted
                self._settle()
                self._transfers.remove(transfer)
                self._pace()

    def _settle(self) -> None:
        """Book what was moved since the last change."""
        elapsed_s = (self.env.now - self._since_ps) / PS_PER_S
        for transfer in self._transfers if elapsed_s else ():  # a rate may be infinite
            transfer.left_bytes -= transfer.rate * elapsed_s
        self._since_ps = int(self.env.now)

    def _pace(self) -> None:
        """Set all rates and await the next end."""
        _fill(self._transfers, self.spec)
        self._timer += 1
        if self._transfers:
            wait_s = min(max(t.left_bytes, 0.0) / t.rate for t in self._transfers)
            timeout = self.env.timeout(max(1, round(wait_s * PS_PER_S)), self._timer)
            timeout.callbacks.append(self._end)

    def _end(self, timeout: simpy.Event) -> None:
        if timeout.value != self._timer:
            return  # rates have changed since
        self._settle()
        for transfer in [t for t in self._transfers if t.left_bytes <= t.rate * 1e-9]:
            self._transfers.remove(transfer)
            transfer.done.succeed()
        self._pace()


def _fill(transfers: list[_Transfer], spec: Links) -> None:
    """Set max-min fair rates by progressive filling."""
    if len(transfers) == 1:  # mostly so, and then plain
        (alone,) = transfers
        links = [_capacity(link, spec) / share for link, share in alone.use.items()]
        alone.rate = min(alone.cap, *links)
        return
    growing = list(transfers)
    rate = 0.0
    for transfer in transfers:
        transfer.rate = 0.0
    while growing:
        level = min(transfer.cap for transfer in growing)
        for link in {link for transfer in growing for link in transfer.use}:
            capacity = _capacity(link, spec)
            taken = sum(t.rate * t.use.get(link, 0.0) for t in transfers if t not in growing)
            weight = sum(t.use.get(link, 0.0) for t in growing)
            level = min(level, (capacity - taken) / weight)
        rate = max(level, rate)
        for transfer in growing:
            transfer.rate = rate
        growing = [t for t in growing if rate < t.cap and not _full(t, transfers, spec)]


def _full(transfer: _Transfer, transfers: list[_Transfer], spec: Links) -> bool:
    for link in transfer.use:
        capacity = _capacity(link, spec)
        if sum(t.rate * t.use.get(link, 0.0) for t in transfers) >= capacity * (1 - 1e-12):
            return True
    return False


def _capacity(link: str, spec: Links) -> float:
    return spec.disk_bytes_per_s if link == "disk" else spec.pcie_bytes_per_s
