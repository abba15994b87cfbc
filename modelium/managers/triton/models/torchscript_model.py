"""A TorchScript model on Triton's Python backend, where Triton has no backend for it."""

import json

import torch
from batches import Tensors


class TritonPythonModel:
    """Runs the file that the parameter `file` names."""

    def initialize(self, args) -> None:
        config = json.loads(args["model_config"])
        told = {name: one["string_value"] for name, one in config["parameters"].items()}
        self.tensors = Tensors(config)
        self.device = "cpu"
        if args["model_instance_kind"] == "GPU":
            self.device = f"cuda:{args['model_instance_device_id']}"
            if share := told.get("memory_share"):
                torch.cuda.set_per_process_memory_fraction(float(share), self.device)
        self.module = torch.jit.load(told["file"], map_location=self.device).eval()

    def execute(self, requests):
        return self.tensors.serve(requests, self.run)

    def run(self, arrays):
        given = [torch.from_numpy(array.copy()).to(self.device) for array in arrays]
        with torch.inference_mode():
            made = self.module(*given)
        some = made if isinstance(made, (tuple, list)) else [made]
        return [one.cpu().numpy() for one in some]
