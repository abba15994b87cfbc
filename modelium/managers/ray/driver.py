"""A process in Ray's environment that is told what to deploy and delete, a JSON line a call."""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelium.managers.engine import EngineError
from modelium.managers.identity import runs
from modelium.managers.process import Processes, tail

PROGRAM = Path(__file__).parent / "models" / "driver.py"
NAME = "driver"
END_S = 1.0
LOOK_S = 0.2
_CHUNK_BYTES = 1 << 16


class LostError(EngineError):
    """The driver is gone, or said nothing in time and was ended."""


class Driver:
    """One driver. Not safe to use from several threads."""

    def __init__(
        self,
        processes: Processes,
        python: Path,
        environment: Mapping[str, str],
        target: Mapping[str, Any],
        deadline_s: float,
    ) -> None:
        """Start it and have it connect to `target`. Raises EngineError."""
        self._processes, self._rest = processes, b""
        processes.end(NAME, None, 0.0)  # an earlier self's, if it is there still
        processes.claim(NAME)
        theirs_in, self._asks = os.pipe()
        self._answers, theirs_out = os.pipe()
        words = [str(theirs_in), str(theirs_out), json.dumps(target)]
        try:
            self._process = processes.spawn(
                NAME, [str(python), str(PROGRAM), *words], environment, (theirs_in, theirs_out)
            )
        except OSError as error:
            self._let_go()
            processes.release(NAME)
            raise EngineError(f"{python}: {error.strerror}") from error
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        try:
            self.told: dict[str, Any] = self._hear(deadline_s)
        except EngineError:
            self.end()
            raise

    def runs(self) -> bool:
        """Whether it is there."""
        return runs(self._process)

    def ask(self, call: str, deadline_s: float, **given: Any) -> dict[str, Any]:
        """Have it do something. Raises EngineError with what Ray says, or LostError."""
        line = json.dumps({"call": call, "given": given}) + "\n"
        try:
            os.write(self._asks, line.encode())
        except OSError:
            raise LostError(f"Ray's driver has ended: {self._last()}") from None
        return self._hear(deadline_s)

    def end(self) -> None:
        """End it; what it deployed stays."""
        self._let_go()
        self._processes.end(NAME, self._process, END_S)
        self._processes.release(NAME)

    def _let_go(self) -> None:
        os.close(self._asks)
        os.close(self._answers)

    def _hear(self, deadline_s: float) -> dict[str, Any]:
        """Its next line."""
        until_s = time.monotonic() + deadline_s
        while b"\n" not in self._rest:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                raise LostError(f"Ray gave no answer in {deadline_s:g} s")
            if select.select([self._answers], [], [], min(left_s, LOOK_S))[0]:
                if not (new := os.read(self._answers, _CHUNK_BYTES)):
                    raise LostError(f"Ray's driver has ended: {self._last()}")
                self._rest += new
        line, _, self._rest = self._rest.partition(b"\n")
        told: dict[str, Any] = json.loads(line)
        if "error" in told:
            raise EngineError(_in_one_line(told["error"]))
        made: dict[str, Any] = told["made"]
        return made

    def _last(self) -> str:
        lines = tail(self._processes.log(NAME)).strip().splitlines()
        return lines[-1][-300:] if lines else "it did not say why"


def _in_one_line(error: str) -> str:
    """The last line of what may be a traceback."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return lines[-1][-500:] if lines else "Ray did not say why"
