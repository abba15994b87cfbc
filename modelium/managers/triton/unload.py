"""How an entry leaves a Triton server: by an unload, or by the end of its processes."""

from __future__ import annotations

import contextlib
import time

import psutil

from modelium.managers.triton.client import GoneError, NoAnswerError
from modelium.managers.triton.server import Remote

TRIES = 3
"""Unloads of one entry while its server dies under it."""
UNLOAD_S = 10.0
"""An unload whose processes have ended is over within this time."""
SPARE_S = 5.0
LOOK_S = 1.0


def remove(server: Remote, entry: str, grace_s: float) -> None:
    """Unload it, and return when it is not there any more. Raises EngineError.

    Triton 2.51 dies of an unload now and then. The others come back at once; and where another
    thread's repair came first, this entry may be back as well.
    """
    server.loaded.pop(entry, None)
    for _ in range(TRIES):
        generation = server.generation
        try:
            if not server.runs():
                raise GoneError("the Triton server has ended")
            _unload(server, entry, grace_s)
            break
        except GoneError as error:
            server.leave(entry)
            server.repair(generation, str(error))
    server.leave(entry)


def _unload(server: Remote, entry: str, grace_s: float) -> None:
    """Raises GoneError if the server has to be started again for the sake of the others."""
    try:
        if grace_s > 0:
            until_s = time.monotonic() + grace_s
            server.client.unload(entry, max(1.0, grace_s))
            if server.client.wait_unloaded(entry, until_s - time.monotonic() + SPARE_S):
                return
    except NoAnswerError:
        pass  # it is loading still, or hangs
    if not _force(server, entry):
        raise GoneError(f"Triton did not unload {entry}")


def _force(server: Remote, entry: str) -> bool:
    """End the processes that run an entry, also those that a load is about to start."""
    killed, until_s = False, time.monotonic() + UNLOAD_S
    while time.monotonic() < until_s:
        for worker in server.workers(entry):
            with contextlib.suppress(psutil.Error):
                worker.kill()
                killed = True
        try:
            server.client.unload(entry, LOOK_S)
            if server.client.wait_unloaded(entry, LOOK_S):
                return True
        except NoAnswerError:
            continue
        if killed and not server.workers(entry):
            return True  # its memory is free, whatever the server thinks of it
    return False
