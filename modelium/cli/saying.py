"""Lines of a server for whoever reads them: there may be nobody any more, and it serves on."""

from __future__ import annotations

import errno
import os
import sys
from typing import TextIO

import click

GONE = (errno.EPIPE, errno.EIO)
"""The reader of a pipe has left; the terminal was closed."""


def say(text: str, *, err: bool = False) -> None:
    """Write a line; where nobody can read it any more, write nothing from now on.

    A line that cannot be written for another reason (the disk is full) is left out.
    """
    try:
        click.echo(text, err=err)
    except OSError as error:
        if error.errno in GONE:
            silence(sys.stderr if err else sys.stdout)
            if not err:
                say("Nobody reads the standard output any more; the server goes on", err=True)


def silence(stream: TextIO) -> None:
    """Have a stream lead nowhere; what it holds still is lost without a complaint at the exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
