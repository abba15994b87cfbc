"""What signals do to a server: end it in order, or have it read its configuration again.

Every signal that would end a process ends a server in order: SIGTERM, Ctrl-C, Ctrl-\\ and those
that mean nothing to it. SIGHUP has two meanings. To a process with a terminal it says that the
terminal was closed, which ends the server, too. A service manager has no terminal and means:
read your configuration again. `nohup` has SIGHUP ignored, and it stays so.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class Signals:
    """Hears signals from its making on, also before there is a server.

    Whatever comes while the server starts is done when it has: an end then finds everything in the
    books that it has to end.
    """

    def __init__(self) -> None:
        """Must be made inside the running event loop, in the main thread."""
        self.stop = asyncio.Event()
        """An end was asked for."""
        self._hurried = self._hung_up = False
        self._hurry: Callable[[], object] | None = None
        self._reload: Callable[[], object] | None = None
        loop = asyncio.get_running_loop()
        for number in ENDING:
            loop.add_signal_handler(number, self._end)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            closed = self._end if has_terminal() else self._hangup
            loop.add_signal_handler(signal.SIGHUP, closed)

    def serve(self, hurry: Callable[[], object], reload: Callable[[], object]) -> None:
        """There is a server now: `hurry` has it end at once, `reload` read its configuration."""
        self._hurry, self._reload = hurry, reload
        if self._hurried:
            hurry()
        if self._hung_up:
            reload()

    def _end(self) -> None:
        """End in order; the second time at once."""
        if self.stop.is_set():
            self._hurried = True
            if self._hurry is not None:
                self._hurry()
        self.stop.set()

    def _hangup(self) -> None:
        """There is no terminal that could have been closed: reload."""
        self._hung_up = True
        if self._reload is not None:
            self._reload()


def has_terminal() -> bool:
    """Whether this process has a controlling terminal, which would be closed with a SIGHUP."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
