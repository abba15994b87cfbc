"""Watching the configuration: what is saved is taken up, once it has not changed for a moment."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from modelium.serving.order import Stamp, stamp

if TYPE_CHECKING:
    from modelium.serving import Server

LOOK_S = 1.0
"""Between two looks, which are a `stat` each: some file systems tell of no changes."""


async def watch_config(server: Server, read: Stamp | None) -> None:
    """Take up each change of the configuration and of the certificate, for ever.

    `read` is how the configuration looked when it was read.
    """
    _, *others = server.reload.files
    before = taken = [read, *map(stamp, others)]
    while True:
        await asyncio.sleep(LOOK_S)
        now = [stamp(file) for file in server.reload.files]
        if now == before and now != taken:  # it is whole: it looks as it did a moment ago
            await server.take_up()
            taken = now
        before = now
