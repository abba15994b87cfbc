"""What vLLM's log tells: how far a start is, and what the model can do.

Read from vLLM 0.32's source and from real starts on CPUs. vLLM may word its log as it likes: the
log names stages, but whether an engine is ready is asked over HTTP.
"""

from __future__ import annotations

import re
from pathlib import Path

from modelium.managers.starting import Start

_STAGES = tuple(
    (stage, re.compile(pattern))
    for stage, pattern in (
        ("weights", r"Starting to load model|Loading .*(checkpoint|shards|safetensors using)"),
        ("profile", r"Loading weights took|Model loading took|torch\.compile took|Warming up done"),
        ("profile", r"torch\.compile and initial profiling"),
        ("compile", r"Using cache directory: .* torch\.compile|Dynamo bytecode transform"),
        ("compile", r"Compiling a graph|Directly load .*compil|Compile and warming up model"),
        ("compile", r"Warming up model for the compilation"),
        ("graphs", r"Capturing CUDA graphs|Profiling CUDA graph memory"),
        ("server", r"init engine \(.*\) took"),
    )
)
"""The stage that begins with a line of the log. Compilation happens within the profiling run."""

_SHARE = re.compile(r"(\d+)%[ |]")


class Follower:
    """Reads a log as it grows, and has the stages begin that it tells of."""

    def __init__(self, log: Path, start: Start) -> None:
        self._log, self._start = log, start
        self._at_byte, self._rest = 0, b""

    def read(self) -> None:
        """Look at what was written since the last time."""
        with self._log.open("rb") as file:
            file.seek(self._at_byte)
            new = file.read()
        self._at_byte += len(new)
        *lines, self._rest = (self._rest + new).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            if known := stage_of(line.decode(errors="replace")):
                self._start.begin(*known)


def stage_of(line: str) -> tuple[str, float] | None:
    """The stage that a line tells of and the share of it that is done; None for most lines."""
    for stage, pattern in _STAGES:
        if pattern.search(line):
            share = _SHARE.search(line)
            return stage, int(share[1]) / 100 if share and "Loading weights" not in line else 0.0
    return None


def tasks(text: str) -> list[str]:
    """What the log says that the model can do, such as "generate" or "embed"."""
    found = re.search(r"Supported tasks: \[([^]]*)\]", text)
    return re.findall(r"\w+", found[1]) if found else []


def address_taken(text: str) -> bool:
    """Whether the log says that somebody else has the port."""
    return bool(re.search(r"address already in use", text, re.IGNORECASE))
