"""Watching the configuration: what is saved is taken up, once it has not changed for a moment."""

from __future__ import annotations

import asyncio

from modelium.serving.reload import Reload

LOOK_S = 1.0
"""Between two looks, which are a `stat` each: some file systems tell of no changes."""


async def watch_config(reload: Reload) -> None:
    """Take up each change of the configuration and of the certificate, for ever."""
    before = reload.seen
    while True:
        await asyncio.sleep(LOOK_S)
        now = reload.look()
        if now == before and now != reload.seen:  # it is whole: it looks as it did a moment ago
            await reload.take_up()
        before = now
