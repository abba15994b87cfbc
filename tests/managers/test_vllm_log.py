"""Stages and causes, read from lines as vLLM 0.32 writes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelium.managers.causes import MOST_CAUSE, cause, final, no_memory
from modelium.managers.engine import Order
from modelium.managers.starting import Start
from modelium.managers.vllm.log import Follower, address_taken, tasks

WORKER = "(Worker pid=15053) ERROR 11-25 09:15:07 [multiproc_executor.py:953] "
CORE = "(EngineCore pid=15045) ERROR 11-25 09:15:08 [core.py:1510] "
ECHO = (
    CORE + "Exception: WorkerProc initialization failed due to an exception in a background"
    " process. See stack trace for root cause.\n"
    "RuntimeError: Engine core initialization failed. See root cause above."
    " Failed core proc(s): {'EngineCore': 1}\n"
)


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (WORKER + "RuntimeError: Cannot find any model weights with `/m`\n" + ECHO,
         "Cannot find any model weights with `/m`"),
        (WORKER + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\n" + ECHO,
         "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"),
        ("vllm: error: unrecognized arguments: --no-such-flag 3",
         "unrecognized arguments: --no-such-flag 3"),
        ("pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
         "  Value error, Sleep mode is not supported. [type=value_error, input_value=1]\n",
         "Sleep mode is not supported."),
        ("json.JSONDecodeError: Expecting value\n\n"
         "The above exception was the direct cause of the following exception:\n\n"
         "OSError: config.json is not a valid JSON file.\n" + ECHO,
         "OSError: config.json is not a valid JSON file."),
        ("ValueError: Couldn't make a tokenizer from one of:\n(1) a file,\n(2) another.\n",
         "Couldn't make a tokenizer from one of: (1) a file, (2) another."),
        ("RuntimeError: Engine core initialization failed. See root cause above."
         " Failed core proc(s): {'EngineCore': -9}",
         "its engine process was killed by signal 9"),
        ("(Worker pid=1) INFO 11-25 09:13:44 [x.py:1] An Error: here is none\n", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_the_root_cause_is_told_not_its_echo(log: str, expected: str) -> None:
    assert cause(log) == expected


def test_a_long_cause_ends_with_a_sentence_if_one_ends_in_time() -> None:
    wordy = f"ValueError: The architecture Foo is not one of those supported. {'Bar ' * 200}"
    assert cause(wordy) == "The architecture Foo is not one of those supported."
    endless = cause(f"ValueError: {'x' * 1000}")
    assert len(endless) <= MOST_CAUSE
    assert endless.endswith("…")


@given(st.text())
def test_any_log_has_a_cause_or_none(text: str) -> None:
    assert len(cause(text)) <= MOST_CAUSE
    assert len(cause(f"ValueError: {text}")) <= MOST_CAUSE


@pytest.mark.parametrize(
    ("why", "expected"),
    [
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", True),
        ("Free memory on device cuda:0 (10.1/79.1 GiB) on startup is less than desired", True),
        ("Available memory on node 0 (6.75/8.09 GiB) on kv cache allocation is less than", True),
        ("its engine process was killed by signal 9", True),
        ("Cannot find any model weights with `/m`", False),
        ("To serve at least one request, 3.0 GiB KV cache is needed", False),
    ],
)
def test_short_of_memory_that_others_hold(why: str, expected: bool) -> None:
    assert no_memory(why) is expected


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("vllm: error: unrecognized arguments: --no-such-flag 3", True),
        ("vllm serve: error: argument --dtype: invalid choice: 'x' (choose from auto, half)", True),
        ("vllm: error: argument --max-num-seqs: expected one argument", True),
        ("ValueError: Model architectures ['X'] are not supported for now. Supported are: ", True),
        (WORKER + "RuntimeError: Cannot find any model weights with `/m`\n" + ECHO, True),
        ("OSError: /m does not appear to have a file named config.json.", True),
        ("ValueError: /m contains custom code. Set the option `trust_remote_code=True`.", True),
        (WORKER + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n", False),
        ("RuntimeError: CUDA error: an illegal memory access was encountered", False),
        ("RuntimeError: NCCL error: unhandled system error", False),
        ("OSError: [Errno 98] Address already in use", False),
        ("ValueError: Free memory on device cuda:0 (1.1/79.1 GiB) is less than desired", False),
        ("", False),
    ],
)
def test_what_another_try_cannot_change(log: str, expected: bool) -> None:
    assert final(cause(log)) is expected


def test_a_taken_port_and_the_tasks_are_seen() -> None:
    assert address_taken("OSError: [Errno 98] Address already in use")
    assert not address_taken("OSError: [Errno 97] Address family not supported")
    log = "(APIServer pid=1) INFO 11-25 09:13:45 [entry.py:136] Supported tasks: ['embed', 'score']"
    assert tasks(log) == ["embed", "score"]
    assert tasks("") == []


def test_stages_are_followed_as_the_log_grows(tmp_path: Path) -> None:
    log, heard = tmp_path / "log", list[tuple[str, float]]()
    log.write_bytes(b"")
    start = Start(Order("m#1", "m"), lambda stage, share: heard.append((stage, share)))
    start.begin("process")
    follower = Follower(log, start)
    lines = [
        b"(Worker pid=1) INFO [cpu_model_runner.py:68] Starting to load model /m...\n",
        b"Loading safetensors checkpoint shards:  25% Completed | 1/4 [00:00<00:03, 1.0it/s]\r",
        b"Loading safetensors checkpoint shards: 100% Comp",
        b"leted | 4/4 [00:04<00:00, 1.0it/s]\n",
        b"Model loading took 14.99 GiB memory and 4.1 seconds\n",
        b"Using cache directory: /c for vLLM's torch.compile\n",
        b"torch.compile took 9.51 s in total\n",
        b"Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  50%|#####     | 1/2\n",
        b"init engine (profile, create kv cache, warmup model) took 21.3 s\n",
    ]
    with log.open("ab", buffering=0) as file:
        for line in lines:
            file.write(line)
            follower.read()
    start.begin("")
    assert heard == [
        ("process", 0.0),
        ("weights", 0.0),
        ("weights", 0.25),
        ("weights", 1.0),
        ("profile", 0.0),
        ("compile", 0.0),
        ("profile", 0.0),
        ("graphs", 0.5),
        ("server", 0.0),
    ]
    assert list(start.seconds) == ["process", "weights", "profile", "compile", "graphs", "server"]
    assert all(seconds >= 0 for seconds in start.seconds.values())
