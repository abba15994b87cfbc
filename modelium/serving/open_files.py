"""How many files may be open: each client is one, and each engine's connection another."""

from __future__ import annotations

import resource

from modelium.gateway.access.connections import Bounds

MOST_OPEN = 1 << 20
"""Not more, where there is no limit at all: some programs, which inherit it, close every number."""
FEW_OPEN = 4096


def raise_open_files() -> list[str]:
    """Raise the soft limit to the hard one; gives a note where that is little.

    Engines that are started from now on inherit it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_OPEN if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    if soft == resource.RLIM_INFINITY or soft >= FEW_OPEN:
        return []
    clients = Bounds.of_this_process().connections
    return [
        f"the limit of open files is {soft}, so there are at most {clients} clients at a time:"
        " raise the hard limit (ulimit -Hn, LimitNOFILE of systemd)"
    ]
