"""Print the inputs and outputs of an ONNX or TorchScript file as JSON; run where it will be served.

python describe.py FILE
"""

import json
import sys

ONNX = {
    "tensor(float)": "TYPE_FP32", "tensor(double)": "TYPE_FP64", "tensor(float16)": "TYPE_FP16",
    "tensor(int8)": "TYPE_INT8", "tensor(int16)": "TYPE_INT16", "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64", "tensor(uint8)": "TYPE_UINT8", "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32", "tensor(uint64)": "TYPE_UINT64", "tensor(bool)": "TYPE_BOOL",
    "tensor(string)": "TYPE_STRING",
}  # fmt: skip


def onnx(path: str) -> dict[str, list[dict[str, object]]]:
    """As the file says it; a size with a name is chosen by requests."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def told(some: list) -> list[dict[str, object]]:
        return [
            {
                "name": one.name,
                "data_type": ONNX[one.type],
                "dims": [size if isinstance(size, int) else -1 for size in one.shape],
            }
            for one in some
        ]

    return {"input": told(session.get_inputs()), "output": told(session.get_outputs())}


def torchscript(path: str) -> dict[str, list[dict[str, object]]]:
    """Names by the code; types and ranks are not in the file: rows of 32-bit floats are assumed."""
    import torch

    module = torch.jit.load(path, map_location="cpu")
    schema = module.forward.schema

    def assumed(name: str) -> dict[str, object]:
        return {"name": name, "data_type": "TYPE_FP32", "dims": [-1, -1]}

    inputs = [one for one in schema.arguments if one.name != "self" and not one.has_default_value()]
    count = 1
    if str(schema.returns[0].type).startswith("Tuple"):
        count = len(schema.returns[0].type.elements())
    return {
        "input": [assumed(one.name) for one in inputs],
        "output": [assumed(f"OUTPUT__{number}") for number in range(count)],
    }


if __name__ == "__main__":
    read = onnx if sys.argv[1].endswith(".onnx") else torchscript
    print(json.dumps(read(sys.argv[1])))
