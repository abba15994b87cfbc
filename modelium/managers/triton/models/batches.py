"""Requests of Triton's Python backend as one batch, and its results as their answers."""

import numpy as np
import triton_python_backend_utils as pb


class RefusedError(ValueError):
    """An input that the model cannot take; the message is for the client."""


def failed(error: Exception, refusals: tuple = ()):
    """The answer to a request that failed: the client's fault, or the model's."""
    if isinstance(error, (RefusedError, *refusals)):
        return pb.InferenceResponse(error=pb.TritonError(str(error), pb.TritonError.INVALID_ARG))
    return pb.InferenceResponse(error=pb.TritonError(f"{type(error).__name__}: {error}"))


class Tensors:
    """The inputs and outputs of a configuration."""

    def __init__(self, config: dict, refusals: tuple = ()) -> None:
        """`refusals` are the exceptions by which the model refuses an input."""
        self.refusals = refusals
        self.inputs = [one["name"] for one in config["input"]]
        self.outputs = [
            (one["name"], pb.triton_string_to_numpy(one["data_type"])) for one in config["output"]
        ]
        self.batched = config.get("max_batch_size", 0) > 0

    def serve(self, requests: list, run) -> list:
        """`run` takes a list of arrays and gives one; it is called once for what fits together."""
        if not self.batched or len(requests) < 2:
            return [self._alone(request, run) for request in requests]
        given = [self._given(request) for request in requests]
        if any([a.shape[1:] for a in one] != [a.shape[1:] for a in given[0]] for one in given):
            return [self._alone(request, run) for request in requests]
        try:
            made = run([np.concatenate(parts) for parts in zip(*given, strict=True)])
        except Exception:  # one of them may be at fault: each gets an answer of its own
            return [self._alone(request, run) for request in requests]
        ends = np.cumsum([one[0].shape[0] for one in given])[:-1]
        parts = [np.split(np.asarray(whole), ends) for whole in made]
        return [self._answer(list(part)) for part in zip(*parts, strict=True)]

    def _alone(self, request, run):
        try:
            return self._answer(run(self._given(request)))
        except Exception as error:
            return failed(error, self.refusals)

    def _given(self, request):
        return [pb.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs]

    def _answer(self, made):
        return pb.InferenceResponse(
            [
                pb.Tensor(name, np.ascontiguousarray(value, dtype=kind))
                for (name, kind), value in zip(self.outputs, made, strict=True)
            ]
        )
