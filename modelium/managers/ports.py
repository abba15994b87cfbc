"""Ports for engines: each is given out once, and never one that somebody else has."""

from __future__ import annotations

import socket
import threading

from modelium.managers.engine import StartError


class Ports:
    """Free ports of one address, from `base` upwards. Safe to use from several threads.

    Between the look and the engine's own bind another program may take a port: a manager then
    starts again with another one.
    """

    def __init__(self, host: str, base: int) -> None:
        self._host, self._base = host, base
        self._taken: set[int] = set()
        self._lock = threading.Lock()

    def take(self) -> int:
        """The lowest free port, until it is given back. Raises StartError if none is left."""
        with self._lock:
            for port in range(self._base, 65536):
                if port not in self._taken and self._free(port):
                    self._taken.add(port)
                    return port
        raise StartError(f"no port from {self._base} upwards is free on {self._host}")

    def hold(self, port: int) -> None:
        """This one is in use by an engine of ours."""
        with self._lock:
            self._taken.add(port)

    def give(self, port: int) -> None:
        """It may be used again."""
        with self._lock:
            self._taken.discard(port)

    def _free(self, port: int) -> bool:
        with socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET) as trial:
            try:
                trial.bind((self._host, port))
            except OSError:
                return False
        return True
