"""An ONNX model on Triton's Python backend, where Triton has no backend for it."""

import json

import onnxruntime
from batches import Tensors
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

GPU = "CUDAExecutionProvider"


class TritonPythonModel:
    """Runs the file that the parameter `file` names."""

    def initialize(self, args) -> None:
        config = json.loads(args["model_config"])
        told = {name: one["string_value"] for name, one in config["parameters"].items()}
        self.tensors = Tensors(config, (InvalidArgument,))
        providers: list = ["CPUExecutionProvider"]
        if args["model_instance_kind"] == "GPU":
            if GPU not in onnxruntime.get_available_providers():
                raise RuntimeError("onnxruntime has no CUDA here: pip install onnxruntime-gpu")
            options = {"device_id": args["model_instance_device_id"]}
            if limit := told.get("bytes"):
                options["gpu_mem_limit"] = limit
            providers.insert(0, (GPU, options))
        self.session = onnxruntime.InferenceSession(told["file"], providers=providers)
        self.names = [name for name, _ in self.tensors.outputs]

    def execute(self, requests):
        return self.tensors.serve(requests, self.run)

    def run(self, arrays):
        return self.session.run(self.names, dict(zip(self.tensors.inputs, arrays, strict=True)))
