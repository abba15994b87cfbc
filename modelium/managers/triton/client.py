"""What is asked of a running Triton server, over gRPC; every call has a deadline.

HTTP is left to requests: while a model loads over HTTP, connections opened before it are blocked.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelium.errors import ConfigError
from modelium.managers.engine import EngineError

LOOK_S = 0.05
_RELOADS = itertools.count(1)
_SAMPLE = {"BYTES": b"1", "BOOL": False, "max_tokens": 1}
"""What a canary sends, by name or type; otherwise 0."""


class NoAnswerError(EngineError):
    """It said nothing in time."""


class GoneError(EngineError):
    """Nobody listens there."""


class NotThereError(EngineError):
    """The server does not serve this model."""


class BrokenModelError(EngineError):
    """The process that runs the model has died; the server goes on calling it ready."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output; -1 is a size that requests choose."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Client:
    """One server. Safe to use from several threads."""

    def __init__(self, address: str) -> None:
        """`address` is host and port. Raises ConfigError if the client is not installed."""
        try:
            import tritonclient.grpc as grpc
        except ImportError as error:
            raise ConfigError(
                f"Triton's client is missing ({error}): pip install 'modelium[triton]'"
            ) from error
        self._grpc, self.address = grpc, address
        try:
            self._server = grpc.InferenceServerClient(address)
        except Exception as error:
            raise ConfigError(f"{address}: no address of a Triton server: {error}") from error

    def live(self, deadline_s: float) -> bool:
        """Whether the server answers at all."""
        with contextlib.suppress(EngineError), self._asked("server", deadline_s) as left_s:
            return bool(self._server.is_server_live(client_timeout=left_s))
        return False

    def load(self, entry: str, deadline_s: float, config: Mapping[str, Any] | None = None) -> None:
        """Load an entry of the repository, with another configuration if given.

        When the deadline passes the server goes on loading. Raises EngineError.
        """
        changed = None if config is None else json.dumps(config)
        with self._asked(entry, deadline_s) as left_s:
            self._server.load_model(entry, config=changed, client_timeout=left_s)

    def unload(self, entry: str, deadline_s: float) -> None:
        """Ask for an unload; it has only begun when this returns. Raises EngineError."""
        with self._asked(entry, deadline_s) as left_s:
            self._server.unload_model(entry, client_timeout=left_s)

    def states(self, deadline_s: float) -> dict[str, str]:
        """The state of each entry that the server has heard of; "" if it was never loaded."""
        with self._asked("index", deadline_s) as left_s:
            index = self._server.get_model_repository_index(client_timeout=left_s)
        return {one.name: one.state for one in index.models}

    def wait_unloaded(self, entry: str, deadline_s: float) -> bool:
        """Wait until an entry is not there; False when the deadline passes. Raises EngineError."""
        until_s = time.monotonic() + deadline_s
        while self.states(max(1.0, deadline_s)).get(entry, "UNAVAILABLE") not in (
            "UNAVAILABLE",
            "",
        ):
            if time.monotonic() > until_s:
                return False
            time.sleep(LOOK_S)
        return True

    def ready(self, entry: str, deadline_s: float) -> bool:
        """What the server says; of a model whose process has died it says so too."""
        with self._asked(entry, deadline_s) as left_s:
            return bool(self._server.is_model_ready(entry, client_timeout=left_s))

    def config(self, entry: str, deadline_s: float) -> dict[str, Any]:
        """The configuration that is in use."""
        with self._asked(entry, deadline_s) as left_s:
            told = self._server.get_model_config(entry, as_json=True, client_timeout=left_s)
        found: dict[str, Any] = told["config"]
        return found

    def tensors(self, entry: str, deadline_s: float) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs and outputs of a loaded entry."""
        with self._asked(entry, deadline_s) as left_s:
            about = self._server.get_model_metadata(entry, client_timeout=left_s)
        return [_tensor(one) for one in about.inputs], [_tensor(one) for one in about.outputs]

    def work(self, entry: str, deadline_s: float) -> int:
        """A counter that grows with each inference that ended."""
        with self._asked(entry, deadline_s) as left_s:
            told = self._server.get_inference_statistics(entry, client_timeout=left_s)
        stats = [one.inference_stats for one in told.model_stats]
        return int(sum(one.success.count + one.fail.count for one in stats))

    def canary(self, entry: str, inputs: list[Tensor], deadline_s: float) -> None:
        """A real inference on the smallest input. Raises EngineError."""
        sent = []
        for tensor in inputs:
            values = _small(tensor)
            one = self._grpc.InferInput(tensor.name, list(values.shape), tensor.datatype)
            sent.append(one.set_data_from_numpy(values))
        with self._asked(entry, deadline_s) as left_s:
            self._server.infer(entry, sent, client_timeout=left_s)

    def close(self) -> None:
        """Close the connection."""
        self._server.close()

    @contextlib.contextmanager
    def _asked(self, what: str, deadline_s: float) -> Iterator[float]:
        """Errors of the client as ours; gives the seconds that the call may take."""
        from tritonclient.utils import InferenceServerException

        try:
            yield max(0.05, deadline_s)
        except ValueError as error:  # gRPC's way to say so
            raise GoneError(f"{what}: the connection was closed") from error
        except InferenceServerException as error:
            status, told = str(error.status() or ""), " ".join(str(error.message()).split())
            why = f"{what}: {told[:300]}"
            if status.endswith("DEADLINE_EXCEEDED"):
                why = f"{what}: Triton gave no answer in {deadline_s:.1f} s"
                raise NoAnswerError(why) from error
            if "is not healthy" in told:
                raise BrokenModelError(why) from error
            if "is not found" in told or "is not ready" in told or "unknown model" in told:
                raise NotThereError(why) from error
            gone = status.endswith("UNAVAILABLE") and "state:" not in told
            if gone or status.endswith("CANCELLED"):  # with its connection
                raise GoneError(why) from error
            raise EngineError(why) from error


def _tensor(told: Any) -> Tensor:
    return Tensor(told.name, told.datatype, tuple(told.shape))


def _small(tensor: Tensor) -> Any:
    from tritonclient.utils import triton_to_np_dtype

    shape = tuple(1 if size < 0 else size for size in tensor.shape)
    value = _SAMPLE.get(tensor.name, _SAMPLE.get(tensor.datatype, 0))
    return np.full(shape, value, dtype=triton_to_np_dtype(tensor.datatype))


def bumped(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same configuration, but for a parameter: Triton loads only what has changed."""
    parameters = dict(config.get("parameters") or {})
    parameters["modelium_reload"] = {"string_value": str(next(_RELOADS))}
    return {**config, "parameters": parameters}
