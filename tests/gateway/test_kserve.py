"""KServe's protocol and /predict, to engines of every kind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from openai import AsyncOpenAI

from modelium.gateway.access.keys import Keys
from modelium.testing.scenarios import model
from tests.gateway.scripted import Script, Stage, perform
from tests.gateway.site import TENSORS, Site, visit

JSON = "application/json"
INPUT = {"name": "input", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}


def test_tensors_go_in_and_out(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        assert (await here.get("/v2/models/a/ready"))[0] == 503
        assert (await here.get("/v2/models/a"))[1]["inputs"] == []  # nobody has told yet
        status, told = await here.post("/v2/models/a/infer", {"id": "7", "inputs": [INPUT]})
        assert (status, told["id"], told["model_name"]) == (200, "7", "a")
        assert told["outputs"][0]["shape"] == [2, 32]
        path = "/v2/models/a/versions/1/infer"
        assert (await here.post(path, {"id": "7", "inputs": [INPUT]}))[1] == told
        assert await here.get("/v2/models/a/ready") == (200, {"name": "a", "ready": True})
        for path in ("/v2/models/a", "/v2/models/a/versions/1"):
            _, about = await here.get(path)
            assert (about["name"], about["platform"]) == ("a", "modelium_emulated")
            assert [about[side][0]["shape"] for side in ("inputs", "outputs")] == [
                [-1, -1],
                [-1, 32],
            ]
        assert (await here.get("/v2"))[1]["name"] == "modelium"
        assert (await here.get("/v2/health/ready"))[0] == 200
        status, told = await here.post("/predict/a", {"inputs": [[1, 2], [3, 4]]})
        assert (status, told["outputs"][0]["shape"]) == (200, [2, 32])

    visit(tmp_path, act, settings=TENSORS)


def test_binary_tensors_pass(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        values = np.ones((2, 2), np.float32).tobytes()
        tensor: dict[str, Any] = {
            "name": "input", "shape": [2, 2], "datatype": "FP32",
            "parameters": {"binary_data_size": len(values)},
        }  # fmt: skip
        head = json.dumps({"inputs": [tensor]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        status, told = await here.ask(
            "POST", "/v2/models/a/infer", data=head + values, headers=headers
        )
        assert (status, told["outputs"][0]["shape"]) == (200, [2, 32])
        headers = {"Inference-Header-Content-Length": "1000"}
        status, told = await here.ask("POST", "/v2/models/a/infer", data=b"x", headers=headers)
        assert status == 400
        assert "0 to 1" in told["error"]

    visit(tmp_path, act, settings=TENSORS)


def test_errors_have_kserves_shape_for_kserves_clients(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        status, told = await here.post("/v2/models/b/infer", {"inputs": [INPUT]})
        assert status == 404
        assert told["error"].startswith("no model called 'b'")
        status, told = await here.post("/v2/models/a/infer", {"inputs": []})
        assert status == 400
        assert "at least one tensor" in told["error"]
        status, told = await here.post("/v2/models/a/infer", {})
        assert (status, told["error"]) == (400, "inputs is missing, expected a list of tensors")
        assert (await here.get("/v2/models/b/ready"))[0] == 404

    visit(tmp_path, act, settings=TENSORS)


def test_what_is_no_call_of_a_model_is_told_in_the_right_words(tmp_path: Path) -> None:
    names = ["a", "org/b", "org/b/c"]

    async def act(here: Site) -> None:
        for name in names:
            for path, why in {
                "config": "does not tell models' configurations",
                "versions/1/config": "does not tell models' configurations",
                "stats": "for Prometheus",
                "nonsense/x": f"{name} has no 'nonsense/x': there are infer, ready and versions/1",
                "versions/2": f"{name} has no version '2': Modelium serves one",
                "versions/2/ready": f"{name} has no version '2'",
                "versions/2/infer": f"{name} has no version '2'",
            }.items():
                for method in ("GET", "POST"):
                    status, told = await here.ask(method, f"/v2/models/{name}/{path}")
                    if method == "POST" and path.endswith("/infer"):
                        body = {"inputs": [INPUT]}
                        status, told = await here.post(f"/v2/models/{name}/{path}", body)
                    assert status == 404, (method, path)
                    assert why in told["error"], (method, path)
                    assert "no model called" not in told["error"]
            for method, end, allowed in [
                ("GET", "/infer", "POST"), ("GET", "/versions/1/infer", "POST"),
                ("POST", "/ready", "GET"), ("POST", "", "GET"), ("POST", "/versions/1", "GET"),
            ]:  # fmt: skip
                url = f"{here.url}/v2/models/{name}{end}"
                async with here.http.request(method, url) as answer:
                    assert (answer.status, answer.headers["Allow"]) == (405, allowed)
            assert (await here.get(f"/v2/models/{name}/ready"))[0] == 503
            assert (await here.get(f"/v2/models/{name}"))[1]["name"] == name
        for end in ("", "/config", "/ready", "/versions/1", "/versions/3/ready"):
            status, told = await here.get(f"/v2/models/org/d{end}")
            assert status == 404
            assert told["error"].startswith("no model called 'org/d'. Did you mean 'org/b'")

    visit(tmp_path, act, [model(name, 20) for name in names], settings=TENSORS)


def test_the_repository_tells_and_changes(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    user = {"X-Api-Key": keys.make("u", "acme", ("user",))}
    admin = {"X-Api-Key": keys.make("root", "", ("user", "admin"))}

    async def act(here: Site) -> None:
        async def states(body: Any = None) -> list[tuple[str, str]]:
            path = "/v2/repository/index"
            status, told = await here.ask("POST", path, json=body, headers=user)
            assert status == 200
            assert all(row["version"] == "1" for row in told)
            return [(row["name"], row["state"]) for row in told]

        assert await states() == [("a", "UNAVAILABLE"), ("org/b", "UNAVAILABLE")]
        load = "/v2/repository/models/org/b/load"
        assert (await here.post(load, headers=user))[0] == 403
        assert await here.post(load, headers=admin) == (200, {})
        assert await states() == [("a", "UNAVAILABLE"), ("org/b", "READY")]
        assert await states({"ready": True}) == [("org/b", "READY")]
        body = {"parameters": {"unload_dependents": True}}
        unload = "/v2/repository/models/org/b/unload"
        assert (await here.post(unload, body, headers=admin))[0] == 200
        assert await states({"ready": True}) == []
        status, told = await here.post(load, {"parameters": {"config": "{}"}}, headers=admin)
        assert status == 400
        assert "config is not taken" in told["error"]
        status, told = await here.post("/v2/repository/models/c/load", headers=admin)
        assert (status, "no model called 'c'" in told["error"]) == (404, True)
        about = (await here.get("/v2", headers=user))[1]
        assert about["extensions"] == ["binary_tensor_data", "model_repository"]

    visit(tmp_path, act, [model("a", 20), model("org/b", 20)], keys=keys, settings=TENSORS)


def test_predict_says_what_is_wrong_with_inputs(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        for inputs, why in {
            "[[1], [2, 3]]": "ragged",
            "[null]": "expected numbers or text",
            '[1, "x"]': "mixes",
            "[" * 40 + "]" * 40: "more than 16 dimensions",
        }.items():
            status, told = await here.post("/predict/a", {"inputs": json.loads(inputs)})
            assert status == 422
            assert why in told["error"]["message"]
        assert (await here.post("/predict/a", {"max_tokens": 1}))[0] == 400
        status, told = await here.post("/predict/a", {"prompt": "x"})
        assert (status, told["outputs"][0]["name"]) == (200, "output")
        for path, why in {"completions": "text", "embeddings": "embeddings"}.items():
            body = {"model": "a", "input" if path == "embeddings" else "prompt": "x"}
            status, told = await here.post(f"/v1/{path}", body)
            assert status == 422
            assert f"does not answer with {why}" in told["error"]["message"]

    visit(tmp_path, act, settings=TENSORS)


def test_predict_asks_language_models(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        body = {"prompt": "x y", "organizationId": "acme", "max_tokens": 3, "temperature": 0.5}
        status, told = await here.post("/predict/a", body)
        assert status == 200
        assert len(told["output"].split()) == 3
        assert told["usage"]["completion_tokens"] == 3
        assert told["organizationId"] == "acme"
        assert await here.journal() == [("acme", "completed", 2, 3)]
        status, told = await here.post("/predict/a", {"inputs": [1]})
        assert status == 422
        assert "is a language model" in told["error"]["message"]
        body = {"prompt": "x", "temperature": "hot"}
        assert (await here.post("/predict/a", body))[0] == 400

    visit(tmp_path, act)


def text_model(text: str, **counts: int) -> Script:
    """What a text model on Triton answers."""
    tensors = [{"name": "text_output", "datatype": "BYTES", "shape": [1], "data": [text]}]
    for name, count in counts.items():
        tensors.append({"name": name, "datatype": "INT32", "shape": [1], "data": [count]})  # type: ignore[list-item]
    return Script([json.dumps({"model_name": "m", "outputs": tensors}).encode()], kind=JSON)


def test_text_models_on_triton_answer_openais_calls() -> None:
    async def act(here: Stage) -> None:
        status, raw = await here.ask(max_tokens=3, temperature=0)
        told = json.loads(raw)
        assert (status, told["model"], told["choices"][0]["text"]) == (200, "a", "hey")
        assert told["choices"][0]["finish_reason"] == "length"
        assert told["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
        path, raw, _ = here.heard[0]
        assert path == "/v2/models/a#1/infer"
        sent = {t["name"]: t["data"] for t in json.loads(raw)["inputs"]}
        assert sent == {"text_input": ["x"], "max_tokens": [3], "temperature": [0]}
        status, raw = await here.ask("/v1/chat/completions")
        told = json.loads(raw)
        assert told["choices"][0]["message"] == {"role": "assistant", "content": "hey"}
        assert "usage" not in told  # the engine did not count
        sent = {t["name"]: t["data"] for t in json.loads(here.heard[1][1])["inputs"]}
        assert sent["text_input"] == ["user: x\nassistant:"]
        async with here.http.post(here.url + "/predict/a", json={"prompt": "x"}) as answer:
            assert (await answer.json())["output"] == "hey"
        assert len(json.loads(here.heard[2][1])["inputs"]) == 1
        assert here.left == [("completed", 5, 3), ("completed", 0, 0), ("completed", 5, 3)]

    perform(
        act,
        text_model("hey", prompt_tokens=5, output_tokens=3),
        text_model("hey"),
        text_model("hey", prompt_tokens=5, output_tokens=3),
        api="kserve",
        name="a#1",
    )


def test_embedding_models_on_triton_answer_openais_calls() -> None:
    tensors = [
        {"name": "embedding", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4.5]},
        {"name": "prompt_tokens", "datatype": "INT32", "shape": [2], "data": [3, 4]},
    ]
    script = Script([json.dumps({"outputs": tensors}).encode()], kind=JSON)

    async def act(here: Stage) -> None:
        async with AsyncOpenAI(base_url=here.url + "/v1", api_key="x") as client:
            told = await client.embeddings.create(model="a", input=["x", "y"])
        assert [one.embedding for one in told.data] == [[1, 2], [3, 4.5]]
        assert told.usage.prompt_tokens == 7
        [text] = json.loads(here.heard[0][1])["inputs"]
        assert (text["shape"], text["data"]) == ([2], ["x", "y"])
        _, raw = await here.ask("/v1/embeddings", input="x", encoding_format="float")
        assert json.loads(raw)["data"][1]["embedding"] == [3, 4.5]
        assert here.left == [("completed", 7, 0)] * 2
        for wrong in ({"input": [1]}, {"input": "x", "encoding_format": "x"}):
            assert (await here.ask("/v1/embeddings", **wrong))[0] in (400, 422)

    perform(act, script, Script(script.parts, kind=JSON), api="kserve")


def test_text_models_on_triton_stream_in_one_piece() -> None:
    async def act(here: Stage) -> None:
        _, raw = await here.ask(
            "/v1/chat/completions", stream=True, stream_options={"include_usage": True}
        )
        piece, usage, end = raw.decode().strip().split("\n\n")
        told = json.loads(piece[6:])
        assert told["object"] == "chat.completion.chunk"
        assert told["choices"][0]["delta"]["content"] == "hey"
        assert json.loads(usage[6:])["usage"]["completion_tokens"] == 3
        assert end == "data: [DONE]"
        _, raw = await here.ask(stream=True)
        assert raw.count(b"data: ") == 2
        assert here.left == [("completed", 5, 3)] * 2

    counted = text_model("hey", prompt_tokens=5, output_tokens=3)
    perform(act, counted, text_model("hey", prompt_tokens=5, output_tokens=3), api="kserve")


def test_models_that_give_something_else_are_not_asked() -> None:
    async def act(here: Stage) -> None:
        for path in ("/v1/completions", "/v1/embeddings"):
            more = {"input": "x"} if path == "/v1/embeddings" else {}
            status, raw = await here.ask(path, **more)
            assert status == 422
            assert "a gives scores, labels: use" in json.loads(raw)["error"]["message"]
        assert here.heard == []

    perform(act, api="kserve", outputs=["scores", "labels"])


def test_what_a_text_model_would_ignore_is_refused_by_its_name() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    odd = {
        "n": 2, "best_of": 3, "echo": True, "logprobs": 0, "suffix": "x", "tools": [tool],
        "tool_choice": "required", "functions": [{}], "response_format": {"type": "json_object"},
        "logit_bias": {"5": 1}, "top_p": 0.5, "presence_penalty": 1, "frequency_penalty": -1.0,
        "stop": ["x"], "seed": 7, "min_tokens": 3, "ignore_eos": True, "guided_json": {},
        "reasoning_effort": "high", "modalities": ["audio"], "no_such_field": 1,
    }  # fmt: skip
    fine = {
        "n": 1, "tools": [], "tool_choice": "none", "response_format": {"type": "text"},
        "stop": None, "top_p": 1.0, "seed": 7, "temperature": 0, "user": "u", "logprobs": False,
        "parallel_tool_calls": True, "logit_bias": {},
    }  # fmt: skip

    async def act(here: Stage) -> None:
        for path in ("/v1/completions", "/v1/chat/completions"):
            for stream in (False, True):
                for name, value in odd.items():
                    status, raw = await here.ask(path, stream=stream, **{name: value})
                    error = json.loads(raw)["error"]
                    assert (status, error["param"]) == (422, name)
                    assert name in error["message"]
        for name in ("max_tokens", "max_completion_tokens"):
            status, raw = await here.ask(**{name: 0})
            assert (status, json.loads(raw)["error"]["param"]) == (400, name)
        said = [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]
        status, raw = await here.ask("/v1/chat/completions", messages=said)
        assert (status, json.loads(raw)["error"]["param"]) == (422, "messages")
        status, raw = await here.ask("/v1/embeddings", input="x", dimensions=64)
        assert (status, json.loads(raw)["error"]["param"]) == (422, "dimensions")
        assert here.heard == []
        assert (await here.ask(**fine))[0] == 200

    perform(act, text_model("hey"), api="kserve")


def test_a_model_on_triton_is_not_loaded_for_what_it_would_ignore(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        operations: Any = here.house.cluster.registry
        served = operations.served["a"]
        operations.served["a"] = replace(served, runtime="triton")
        status, told = await here.post("/v1/completions", {"model": "a", "prompt": "x", "n": 2})
        operations.served["a"] = served
        assert (status, told["error"]["param"]) == (422, "n")
        assert not here.house.cluster.decisions

    visit(tmp_path, act)


def test_a_users_own_class_takes_any_json_by_predict_only() -> None:
    async def act(here: Stage) -> None:
        body = {"prompt": "x", "depth": 123456789012345678901234567890}
        async with here.http.post(here.url + "/predict/a", json=body) as answer:
            assert (answer.status, await answer.json()) == (200, {"depth": 3})
        assert here.heard[0][0] == "/"
        assert json.loads(here.heard[0][1])["prompt"] == "x"
        for stream in (False, True):
            status, raw = await here.ask(stream=stream)
            assert status == 422
            assert "takes POST /predict/a only" in json.loads(raw)["error"]["message"]

    perform(act, Script([b'{"depth": 3}'], kind=JSON), plain=True)


def test_what_a_users_own_class_is_asked_need_be_neither_prompt_nor_inputs() -> None:
    async def act(here: Stage) -> None:
        async with here.http.post(here.url + "/predict/a", json={"depth": 7}) as answer:
            assert (answer.status, await answer.json()) == (200, {"depth": 3})
        assert json.loads(here.heard[0][1]) == {"depth": 7}

    perform(act, Script([b'{"depth": 3}'], kind=JSON), plain=True, runtime="ray")


def test_a_language_model_on_ray_needs_a_prompt_all_the_same() -> None:
    async def act(here: Stage) -> None:
        async with here.http.post(here.url + "/predict/a", json={"depth": 7}) as answer:
            assert answer.status == 400
            assert "prompt" in (await answer.json())["error"]["message"]
        assert here.heard == []

    perform(act, runtime="ray")
