"""Settings by runtime: which are taken, and how others are refused."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest

from modelium.errors import ConfigError
from modelium.managers import environment
from modelium.managers.settings import SEVERAL, problem

TENSOR = {"name": "X", "data_type": "TYPE_FP32", "dims": [-1]}


@pytest.mark.parametrize(
    ("runtime", "settings"),
    [
        ("vllm", {"max_model_len": 4096, "kv_transfer_config": {"a": [1]}, "seed": None}),
        ("vllm", {"cudagraph_capture_sizes": [1, 2, 4], "lora-modules": ["a=/a", "b=/b"]}),
        ("vllm", {"flags": ["--max-model-len", "1"], "env": {"A": "1"}}),
        ("triton", {"input": [TENSOR], "output": [TENSOR], "parameters": {"a": 1}}),
        ("triton", {"max_batch_size": 8, "task": "embed"}),
        ("ray", {"args": {"sizes": [1, 2]}, "class": "", "trust_remote_code": True}),
        ("emulated", {"speed": [1]}),
    ],
)
def test_these_are_taken(runtime: str, settings: dict[str, Any]) -> None:
    assert problem(runtime, settings) is None


@pytest.mark.parametrize(
    ("runtime", "name", "value", "why"),
    [
        ("vllm", "max_model_len", [1, 2],
         "--max-model-len of vLLM takes one value, not the list [1, 2]. Whatever vLLM takes may"
         " stand in `flags`."),
        ("vllm", "lora_module", ["a"],
         "--lora-module of vLLM takes one value, not the list ['a']. Did you mean 'lora_modules'?"),
        ("vllm", "lora_modules", [], "--lora-modules is [], expected a list of one or more"),
        ("vllm", "lora_modules", [["a"]], "--lora-modules is [['a']], expected a list of one or"),
        ("triton", "max_batch_size", [4], "max_batch_size is [4], expected a whole number"),
        ("triton", "instances", True, "instances is True, expected a whole number"),
        ("triton", "input", TENSOR, "input is {'name': 'X'"),
        ("triton", "instance", 2, "Triton has no setting 'instance'. Did you mean 'instances'?"),
        ("ray", "args", [1], "args is [1], expected a mapping"),
        ("ray", "zebra", 1, "Ray has no setting 'zebra'. Known are class, args,"),
    ],
)  # fmt: skip
def test_these_are_not(runtime: str, name: str, value: Any, why: str) -> None:
    found = problem(runtime, {"env": {}, name: value})
    assert found is not None
    assert found[0] == name
    assert found[1].startswith(why), found[1]


@pytest.mark.engines
def test_flags_that_take_several_values_are_those_of_the_installed_vllm() -> None:
    try:
        program = environment.find("vllm", "vllm")
    except ConfigError as error:
        pytest.skip(str(error))
    code = (
        "from vllm.utils.argparse_utils import FlexibleArgumentParser as P\n"
        "from vllm.entrypoints.launchers.cli_args import make_arg_parser\n"
        "print('\\nSEVERAL', *(o for a in make_arg_parser(P())._actions if a.nargs in ('+', '*')"
        " for o in a.option_strings))"
    )
    told = subprocess.run(
        [str(program.parent / "python"), "-c", code],
        env=environment.variables(program), capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    words = re.findall(r"--([a-z-]+)", told.stdout.rpartition("SEVERAL")[2])
    assert {word.replace("-", "_") for word in words} == SEVERAL
