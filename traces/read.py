"""Reading any trace: the format is told from what is in the file, not from its name."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelium.errors import TraceError
from modelium.traces import native_format
from modelium.traces.formats.asked import Asked, Start
from modelium.traces.lengths import Lengths
from modelium.traces.trace import Trace

PICKLE = b"\x80"


@dataclass(frozen=True)
class Format:
    """A kind of file; its module has `recognises*(start)` and `read*(path, asked)`."""

    name: str
    module: str
    variant: str = ""

    def recognises(self, start: Start) -> bool:
        """Is the file of this format? Only its beginning is looked at."""
        return bool(self._function("recognises")(start))

    def read(self, path: Path, asked: Asked) -> Trace:
        """Read a file of this format."""
        trace: Trace = self._function("read")(path, asked)
        return trace

    def _function(self, verb: str) -> Callable[..., Any]:
        module = importlib.import_module(f"modelium.traces.{self.module}")
        function: Callable[..., Any] = getattr(module, f"{verb}{self.variant}")
        return function


OWN = Format("Modelium", "native_format")
FORMATS = (
    Format("Azure LLM 2023/2024", "formats.azure_llm"),
    Format("Azure Functions 2019", "formats.azure_functions", "_2019"),
    Format("Azure Functions 2021", "formats.azure_functions", "_2021"),
    Format("Iluvatar", "formats.azure_functions", "_iluvatar"),
    Format("BurstGPT", "formats.burstgpt"),
    Format("Mooncake", "formats.mooncake"),
    Format("ServeGen", "formats.servegen"),
    Format("ServeGen table of rates", "formats.servegen", "_table"),
    Format("GenTD26", "formats.gentd26"),
    Format("Chatbot Arena sample", "formats.arena"),
    Format("Vidur", "formats.lengths_only", "_vidur"),
    Format("ShareGPT or vLLM lengths", "formats.lengths_only", "_json"),
    OWN,
)
"""In the order in which they are tried."""


def read_trace(
    path: str | Path,
    *,
    seed: int = 0,
    model: str | None = None,
    lengths: Lengths | None = None,
    scale: float = 1.0,
) -> Trace:
    """Read a trace of any known format (docs/traces.md lists them, and the rules of each).

    `seed` is of everything that is made up where the file does not say it; `model` names the
    model where the file names none (else it is the file's name); `lengths` take the place of the
    file's; `scale` keeps a share of the load. Raises TraceError naming file and row.
    """
    path = Path(path)
    if not 0.0 < scale <= 1.0:
        raise TraceError(f"scale is {scale:g}, expected a share of the load above 0, at most 1")
    asked = Asked(seed=seed, model=model, lengths=lengths, scale=scale)
    return format_of(path).read(path, asked)


def format_of(path: Path) -> Format:
    """Recognise a file by its first bytes. Raises TraceError where no format fits."""
    start = Start(path)
    if not os.path.exists(path):  # unlike Path.exists, takes names too long for a file
        raise TraceError(f"{path} does not exist")
    if start.bytes.startswith(PICKLE):
        raise TraceError(f"{path} is a Python pickle. Reading one can run code, so none is read.")
    if native_format.certainly(start):
        return OWN  # the others need not be imported
    for known in FORMATS:
        if known.recognises(start):
            return known
    if path.is_dir():
        raise TraceError(f"{path} is a folder, expected a file or ServeGen's chunks in the folder")
    raise TraceError(
        f"{path} is of no trace format known here. It begins with {_shown(start)}; "
        f"known are {', '.join(f.name for f in FORMATS)}."
    )


def _shown(start: Start) -> str:
    text = start.bytes[:60].decode("utf-8", errors="replace").partition("\n")[0].strip()
    return repr(text) if text.isprintable() else ascii(text[:20])
