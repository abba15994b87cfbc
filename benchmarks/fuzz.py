"""Random input everywhere: no traceback, no hang, no 500.

    python benchmarks/fuzz.py [--work requests ...] [--count 100000] [--seed 0] [--case N] [--json]

Five works: HTTP requests over every route of a running gateway, configuration files, parameters of
policies, request traces, model folders. Each case is drawn from its own seed, so that `--work W
--case N` plays one again and prints what came of it. Input is either drawn from what is valid and
then damaged, or not valid at all. Good answers are a result, or a `ModeliumError` of one line.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import copy
import gzip
import json
import random
import re
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import yaml
from testbed import progress

from modelium import catalog
from modelium.analyze import analyze
from modelium.config import examine, make_plan
from modelium.config.planning.live import live_input
from modelium.config.template import json_schema
from modelium.errors import ModeliumError
from modelium.plugins.registry import describe, make_policy, names
from modelium.traces import read_trace
from tests.live.running import running, sweep

HANG_S = 30
"""Nothing that is asked here takes so long."""
UNFINISHED_S = 0.3
"""So long the rest of a request that has no end is not sent."""
CLIENTS = 24
SHOWN = 20

Rng = random.Random
Case = Callable[[Rng, Path], str]
"""One case in a folder of its own; returns what became of it in a word."""

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e-300, 1e300,
    float("nan"), float("inf"), "", " ", "0", "-1", "nan", "inf", "1e999", "80GiB", "-5s", "10min",
    "\x00", "\n", "ä", "\u202e", "\U0001f600", "a" * 5000, "../../etc/passwd", "%00", "{}", "[]",
    [], {}, [None], {"": None}, [[]], {"a": {"b": {"c": []}}},
)  # fmt: skip


def odd(rng: Rng) -> Any:
    """A value that few expect."""
    return copy.deepcopy(rng.choice(ODD))


def damaged(value: Any, rng: Rng) -> Any:
    """A copy of plain data with one place changed: replaced, removed, doubled or renamed."""
    value = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []

    def walk(inner: Any) -> None:
        keys = inner if isinstance(inner, dict) else range(len(inner))
        for key in keys:
            places.append((inner, key))
            if isinstance(inner[key], dict | list):
                walk(inner[key])

    if not isinstance(value, dict | list) or not value:
        return odd(rng)
    walk(value)
    inner, key = rng.choice(places)
    match rng.randrange(5):
        case 0:
            del inner[key]
        case 1 if isinstance(inner, dict):
            inner[str(key) + rng.choice(["s", "_", " "])] = inner.pop(key)
        case 2:
            inner[key] = [inner[key], inner[key]]
        case 3 if isinstance(inner[key], int | float):
            inner[key] = rng.choice([-1, 0, 0.5, 2, 1e6, 1e18]) * inner[key]
        case _:
            inner[key] = odd(rng)
    return value


def cut(raw: bytes, rng: Rng) -> bytes:
    """Bytes with some cut off, changed, or put in."""
    data = bytearray(raw)
    for _ in range(rng.choice([0, 1, 1, 2, 5])):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0:
                del data[at:]
            case 1:
                data[at : at + rng.randrange(1, 9)] = b""
            case 2:
                data[at:at] = rng.choice(
                    [b"\x00", b"\n", b"\xff\xfe", b",,", b'"', b"-", b"9" * 40]
                )
            case _ if at < len(data):
                data[at] = rng.randrange(256)
    return bytes(data)


# Configurations


@dataclass
class Drawer:
    """Draws values that a JSON schema allows."""

    schema: dict[str, Any]
    rng: Rng

    def draw(self, node: dict[str, Any], depth: int = 0) -> Any:
        """A value for this node; with some luck an odd one."""
        rng = self.rng
        if rng.random() < 0.01:
            return odd(rng)
        if "$ref" in node:
            return self.draw(self.schema["$defs"][node["$ref"].rpartition("/")[2]], depth)
        if "anyOf" in node:
            return self.draw(rng.choice(node["anyOf"]), depth)
        if "enum" in node:
            return rng.choice(node["enum"])
        if node.get("examples") and rng.random() < 0.7:
            return rng.choice(node["examples"])
        return self._plain(node, depth)

    def _plain(self, node: dict[str, Any], depth: int) -> Any:
        rng = self.rng
        match node.get("type"):
            case "object":
                fields = node.get("properties", {})
                share = rng.choice([0.05, 0.2, 0.5]) / (1 + depth)
                drawn = {
                    key: self.draw(each, depth + 1)
                    for key, each in fields.items()
                    if key in node.get("required", ()) or rng.random() < share
                }
                more = node.get("additionalProperties")
                if isinstance(more, dict):
                    for _ in range(rng.randrange(4)):
                        drawn[_name(rng)] = self.draw(more, depth + 1)
                return drawn
            case "array":
                items = node.get("items", {"type": "string"})
                return [self.draw(items, depth + 1) for _ in range(rng.randrange(1, 4))]
            case "integer":
                return rng.choice([1, 1, 2, 4, 8, 100, 4096, node.get("minimum", 0)])
            case "number":
                return rng.choice([0.1, 0.5, 0.9, 1, 2.0, 30, node.get("minimum", 0)])
            case "boolean":
                return rng.random() < 0.5
            case "null":
                return None
            case _:
                return _name(rng)


WORDS = (
    "2xh100-80g", "8xl4", "2x4xa100-80g", "10s", "5min", "16GiB", "6GB/s", "emulated", "vllm",
    "lru", "ilp:every_s=15", "chat", "/tmp", ".", "127.0.0.1", "127.0.0.1:8000", "GPU-1", "0",
)  # fmt: skip


def _name(rng: Rng) -> str:
    some = (*WORDS, rng.choice(MODEL_NAMES), rng.choice(GPU_NAMES))
    return str(rng.choice(some))


SCHEMA = json.loads(json_schema())
MODEL_NAMES = list(catalog.models())
GPU_NAMES = list(catalog.gpus())


def configuration(rng: Rng, folder: Path) -> str:
    """A file as `check`, `simulate` and `run` read it: checked, planned, made ready to serve."""
    file = folder / "modelium.yaml"
    given: Any = Drawer(SCHEMA, rng).draw(SCHEMA)
    if rng.random() < 0.7 and isinstance(given, dict):
        # Most drawn sections are refused at once: with a good cluster and models more is reached.
        given.setdefault("cluster", {"gpus": rng.choice(["4xh100-80g", "2x2xl4", "8xa100-80g"])})
        given.setdefault("models", rng.sample(MODEL_NAMES, rng.randrange(1, 4)))
        given.pop("profiles", None)
    if rng.random() < 0.3:
        given = damaged(given, rng)
    raw = yaml.safe_dump(given, allow_unicode=True).encode(errors="replace")
    file.write_bytes(cut(raw, rng) if rng.random() < 0.1 else raw)
    config, problems = examine(file)
    if config is None:
        assert all(problem.strip() for problem in problems)
        return "refused"
    plan = make_plan(config)
    if plan.hardware.gpus:  # `run` does not start without
        live_input(config, plan, emulate=True)
    plan.simulation.settings()
    return "planned"


# Policies


PARAMETERS = {
    name: [row["name"] for row in describe(name)["parameters"]] for name in names()
}  # fmt: skip


def policy(rng: Rng, folder: Path) -> str:
    """A policy in the words of the command line."""
    known = rng.choice(list(PARAMETERS))
    pairs = []
    for _ in range(rng.randrange(4)):
        key = rng.choice([*PARAMETERS[known], "every_s", "", "x"])
        value = rng.choice([str(odd(rng))[:80], str(rng.randrange(100)), "true", "lru", "1e-9"])
        pairs.append(f"{key}={value}" if rng.random() < 0.95 else value)
    text = f"{known}:{','.join(pairs)}" if rng.random() < 0.95 else str(odd(rng))[:80]
    make_policy(text, models=("a", "b"))
    return "made"


# Traces


TRACES = (
    b"arrival_s,model,prompt_tokens,output_tokens\n0,a,10,5\n1.5,b,100,50\n2,a,7,3\n",
    b"arrival_s,model,prompt_tokens,output_tokens,organization,slo_class,session\n0,a,1,1,x,y,z\n",
    b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n",
    b"app,func,end_timestamp,duration\nx,f,5.0,1.5\nx,g,1.0,1.25\n",
    b"func_name,invoke_time_ms\nf,1500\ng,250\n",
    b"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    b"5,ChatGPT,472,18,490,Conversation log\n",
    b'{"timestamp": 0, "input_length": 1100, "output_length": 52, "hash_ids": [0, 1, 2]}\n'
    b'{"timestamp": 500, "input_length": 1800, "output_length": 7, "hash_ids": [0, 1, 2, 3]}\n',
)


def trace(rng: Rng, folder: Path) -> str:
    """A file of one of the formats, or something like it."""
    raw = cut(rng.choice(TRACES), rng)
    name = rng.choice(["t.csv", "t.jsonl", "t.parquet", "t", "t.csv.gz"])
    if rng.random() < 0.1:
        raw = cut(gzip.compress(raw), rng)
    (folder / name).write_bytes(raw)
    read_trace(folder / name)
    return "read"


# Model folders


SHAPE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2,
    "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "vocab_size": 256, "max_position_embeddings": 512,
    "torch_dtype": "bfloat16", "tie_word_embeddings": False, "quantization_config": {
        "quant_method": "gptq", "bits": 4}, "text_config": {"hidden_size": 64},
    "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 128,
}  # fmt: skip
TENSORS: dict[str, Any] = {
    "model.embed_tokens.weight": {"dtype": "BF16", "shape": [256, 64], "data_offsets": [0, 32768]},
    "lm_head.weight": {"dtype": "F8_E4M3", "shape": [256, 64], "data_offsets": [32768, 49152]},
}


def folder(rng: Rng, place: Path) -> str:
    """The files of a model, some of them damaged."""
    shape = {key: value for key, value in SHAPE.items() if rng.random() < 0.9}
    for _ in range(rng.randrange(3)):
        shape = damaged(shape, rng)
    text = json.dumps(shape).encode()
    (place / "config.json").write_bytes(cut(text, rng) if rng.random() < 0.2 else text)
    header = TENSORS if rng.random() < 0.5 else damaged(TENSORS, rng)
    raw = json.dumps(header).encode()
    size = len(raw) if rng.random() < 0.8 else rng.choice([0, 1, 2**40, 2**63, len(raw) + 1])
    weights = struct.pack("<Q", size) + raw + bytes(49152)
    kind = rng.choice(["model.safetensors", "model.safetensors", "model.onnx", "model.gguf",
                       "pytorch_model.bin", "model.py", "config.pbtxt", "model.pt"])  # fmt: skip
    (place / kind).write_bytes(cut(weights, rng) if rng.random() < 0.3 else weights)
    if rng.random() < 0.2:
        index = damaged({"metadata": {"total_size": 1}, "weight_map": {"a": kind}}, rng)
        (place / "model.safetensors.index.json").write_text(json.dumps(index))
    json.dumps(analyze(place).as_dict())
    return "analysed"


# Requests


MODELS = ("llama-3.1-8b", "qwen2.5-7b", "mistral-7b", "phi-4", "gemma-2-2b")
FUZZED: dict[str, Any] = {
    "cluster": {"gpus": "5xh100-80g"},
    "models": {
        **{name: {"settings": {"speed": "inf"}} for name in MODELS},
        "org/classify": {
            "weights": "500MiB", "infer": {"latency": ["1ms"]}, "settings": {"speed": "inf"},
        },
    },
    "emulated": {"speed": 1000},
    "gateway": {"max_wait": 20},
}  # fmt: skip
BODIES: tuple[dict[str, Any], ...] = (
    {"model": MODELS[0], "prompt": "hello", "max_tokens": 3},
    {"model": MODELS[1], "prompt": ["a", "b"], "max_tokens": 3, "n": 2, "stop": ["x"]},
    {
        "model": MODELS[2], "max_tokens": 3, "stream": True,
        "messages": [{"role": "user", "content": "hi"}], "stream_options": {"include_usage": True},
    },
    {
        "model": MODELS[3], "max_completion_tokens": 3, "temperature": 0.5, "logprobs": True,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    },
    {"model": "org/classify", "input": ["a", "b"], "encoding_format": "float"},
    {"prompt": "hello", "max_tokens": 3, "organizationId": "acme", "priority": 1},
    {"inputs": [[0.1, 0.2]]},
    {
        "id": "1", "inputs": [
            {"name": "input", "shape": [1, 2], "datatype": "FP32", "data": [0.1, 0.2]}
        ], "parameters": {"priority": 1}, "outputs": [{"name": "output"}],
    },
    {"ready": True},
)  # fmt: skip
HEADERS = (
    "Authorization", "X-Api-Key", "X-Organization", "X-Priority", "X-Max-Wait", "X-Slo-Class",
    "X-Session", "X-Request-Id", "Content-Type", "Accept", "Origin", "Content-Encoding",
    "Inference-Header-Content-Length", "Transfer-Encoding", "Expect", "Range", "Host", "Cookie",
    "X-Forwarded-For", "Content-Length",
)  # fmt: skip
VALUES = (
    "", "0", "1", "-1", "1e9", "nan", "inf", "a" * 300, "Bearer x", "application/json", "gzip",
    "application/octet-stream", "100-continue", "chunked", "text/event-stream", "http://evil",
    "\x7f", "\xe4", "acme", "bytes=0-", "9" * 30, "0.5",
)  # fmt: skip
FRAMING = {"Content-Length", "Transfer-Encoding", "Expect", "Content-Encoding"}
"""With another value of these a request may have no end, or no right to an answer."""
ENDLESS = ("/events",)
"""They tell what happens for as long as somebody listens."""


def raw_request(rng: Rng, routes: Sequence[tuple[str, str]]) -> tuple[bytes, bool]:
    """One request as bytes, mostly well-formed; and whether it surely ends where they end."""
    method, path = rng.choice(routes)
    if rng.random() < 0.05:
        method = rng.choice(["GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS", "BREW"])
    pool = (*MODELS, "org/classify", "nobody", "a/b/c", "", ".", "..", "%", "ä", "\x00", "a" * 2000)
    # What deletes is asked of models that are not there: else soon nothing would be.
    some = pool[len(MODELS) + 1 :] if method == "DELETE" else pool
    path = re.sub(r"{[^}]*}", lambda _: quote(rng.choice(some), safe=rng.choice(["/", ""])), path)
    if rng.random() < 0.1:
        path += rng.choice(
            ["?limit=x", "?limit=-1", "?model=%00", "?level=9", "/", "//", "?", "%zz"]
        )
    body: Any = rng.choice(BODIES)
    for _ in range(rng.choice([0, 0, 1, 1, 2, 4])):
        body = damaged(body, rng)
    data = json.dumps(body).encode() if method in ("POST", "PUT", "PATCH") else b""
    if rng.random() < 0.05:
        data = cut(data, rng)
    headers = {"Host": "127.0.0.1", "Content-Type": "application/json", "Connection": "close"}
    headers |= {"Content-Length": str(len(data))}
    changed = {rng.choice(HEADERS): rng.choice(VALUES) for _ in range(rng.choice([0, 0, 0, 1, 2]))}
    head = "".join(f"{key}: {value}\r\n" for key, value in (headers | changed).items())
    raw = f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1", errors="replace") + data
    if rng.random() < 0.02:
        return cut(raw, rng), False
    return raw, path.partition("?")[0] not in ENDLESS and changed.keys().isdisjoint(FRAMING)


async def send(url: str, raw: bytes, whole: bool) -> str:
    """The status of the answer, or what came in its place."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    line = b""
    try:
        async with asyncio.timeout(HANG_S if whole else UNFINISHED_S):
            writer.write(raw)
            line = await reader.readline()
            while await reader.read(1 << 16):
                pass
    except TimeoutError:
        if whole:
            return "hang"
    except ConnectionError:
        pass  # what had come by then decides
    finally:
        writer.close()
    return line[9:12].decode() if line.startswith(b"HTTP/1.") else "unanswered"


async def requests(
    url: str, routes: Sequence[tuple[str, str]], seeds: Sequence[int], count: int
) -> tuple[Counter[str], list[tuple[int, str]]]:
    """So many of them from a few clients."""
    outcomes: Counter[str] = collections.Counter()
    wrong: list[tuple[int, str]] = []
    left = iter(seeds or range(count))

    async def client() -> None:
        for number in left:
            raw, whole = raw_request(Rng(f"requests {SEED} {number}"), routes)
            outcome = await send(url, raw, whole)
            if outcome == "unanswered" and whole:
                outcome = "closed"
            outcomes[outcome] += 1
            if outcome in ("hang", "closed", "500"):
                wrong.append((number, f"{outcome}: {raw[:400]!r}"))
            if sys.stderr.isatty() and not sum(outcomes.values()) % 500:
                progress(f"requests {sum(outcomes.values()):,} of {count:,}")

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return outcomes, wrong


def all_requests(count: int, one: int | None) -> Outcome:
    """Requests to a gateway with emulated engines, over every route of its own description."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "site"
        try:
            with running(root, FUZZED, "--emulate") as server:
                described = server.client._call("GET", "/openapi.json", "paths")
                routes = [
                    (method.upper(), path)
                    for path, methods in described["paths"].items()
                    for method in methods
                ]
                seeds = [] if one is None else [one]
                outcomes, wrong = asyncio.run(requests(server.url, routes, seeds, count))
                alive = server.client.status()
                broken = [e for e in server.events if e["event"].endswith("-fault")]
                server.end()
            told = (root / "stderr").read_text()
        finally:
            sweep(root)
    if "Traceback" in told:
        wrong.append((-1, told[told.index("Traceback") :][:4000]))
    wrong += [(-1, str(event)) for event in broken]
    if alive["policy_faults"]:
        wrong.append((-1, f"{alive['policy_faults']} policy faults"))
    return Outcome(outcomes, wrong)


# All works


@dataclass
class Outcome:
    """What became of the cases of one work."""

    outcomes: Counter[str] = field(default_factory=collections.Counter)
    wrong: list[tuple[int, str]] = field(default_factory=list)
    """Number and traceback of the cases that have found a fault."""


class Hang(BaseException):
    """It took too long."""


def play(case: Case, name: str, number: int, place: Path) -> str:
    """One case. Raises whatever it should not raise."""
    try:
        return case(Rng(f"{name} {SEED} {number}"), place)
    except ModeliumError as error:
        return "refused" if str(error).strip() else "refused without a word"


@contextlib.contextmanager
def emptied(root: Path) -> Iterator[Path]:
    """A folder whose files are gone afterwards."""
    root.mkdir(exist_ok=True)
    yield root
    for path in root.iterdir():
        path.unlink()


def all_cases(name: str, case: Case, count: int, one: int | None) -> Outcome:
    """So many cases of a work in this process."""
    outcome = Outcome()

    def late(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, late)
    warnings.simplefilter("error")  # an overflow that nobody caught is a fault, too
    with tempfile.TemporaryDirectory() as root:
        for number in range(count) if one is None else [one]:
            signal.alarm(HANG_S)
            try:
                with emptied(Path(root) / "case") as place:
                    became = play(case, name, number, place)
                    assert became != "refused without a word"
                    outcome.outcomes[became] += 1
            except (Exception, Hang):
                outcome.outcomes["wrong"] += 1
                outcome.wrong.append((number, traceback.format_exc()))
            finally:
                signal.alarm(0)
            if not number % 500:
                progress(f"{name} {number:,} of {count:,}")
    return outcome


WORKS: dict[str, Case] = {
    "configurations": configuration, "policies": policy, "traces": trace, "folders": folder,
}  # fmt: skip
SEED = 0


def main() -> int:
    """Run and print; 1 if anything was wrong."""
    global SEED
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", nargs="*", choices=["requests", *WORKS], default=None)
    parser.add_argument("--count", type=int, default=100_000, help="cases of each work [100000]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="play only this one of each work")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    SEED = options.seed
    rows: list[dict[str, Any]] = []
    for name in options.work or ["requests", *WORKS]:
        begun_s = time.monotonic()
        if name == "requests":
            outcome = all_requests(options.count, options.case)
        else:
            outcome = all_cases(name, WORKS[name], options.count, options.case)
        progress("")
        took_s = time.monotonic() - begun_s
        rows.append(
            {
                "work": name, "cases": sum(outcome.outcomes.values()), "took_s": round(took_s, 1),
                "outcomes": dict(outcome.outcomes.most_common()), "wrong": len(outcome.wrong),
                "cases_wrong": outcome.wrong,
            }
        )  # fmt: skip
        if not options.json:
            show(rows[-1])
    if options.json:
        print(json.dumps(rows, indent=2))
    return int(any(row["wrong"] for row in rows))


def show(row: dict[str, Any]) -> None:
    """A row, and each kind of fault once, by its last line."""
    told = ", ".join(f"{count:,} {word}" for word, count in row["outcomes"].items())
    print(f"{row['work']:<16}{row['cases']:>9,} cases {row['wrong']:>5,} wrong  {told}", flush=True)
    kinds: dict[str, tuple[int, str]] = {}
    for number, words in row["cases_wrong"]:
        lines = words.strip().splitlines()
        place = [line.strip() for line in lines if line.strip().startswith("File ")]
        kinds.setdefault(f"{place[-1] if place else ''} {lines[-1][:200]}", (number, words))
    for kind, (number, _) in list(kinds.items())[:SHOWN]:
        print(f"  --case {number}: {kind}")


if __name__ == "__main__":
    sys.exit(main())
