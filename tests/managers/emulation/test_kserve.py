"""KServe's v2 protocol of an emulated engine, asked over HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.managers.emulation.conftest import Client
from tests.managers.emulation.test_openai import JSON

INFER = "/v2/models/vision/infer"


def tensor(*shape: int, **more: Any) -> dict[str, Any]:
    n = 1
    for size in shape:
        n *= size
    return {"name": "x", "shape": list(shape), "datatype": "FP32", "data": [0.5] * n, **more}


def test_it_answers_a_tensor_an_item(vision: Client) -> None:
    status, body = vision.post(INFER, id="7", inputs=[tensor(3, 2)])
    assert status == 200
    assert (body["id"], body["model_name"], body["model_version"]) == ("7", "vision", "1")
    (output,) = body["outputs"]
    assert output["shape"] == [3, 32]
    assert len(output["data"]) == 96
    assert vision.post(INFER, id="7", inputs=[tensor(3, 2)])[1] == body
    assert vision.post(INFER, id="7", inputs=[tensor(3, 3)])[1] != body


def test_outputs_have_the_names_that_were_asked_for(vision: Client) -> None:
    _, body = vision.post(INFER, inputs=[tensor(1, 2)], outputs=[{"name": "a"}, {"name": "b"}])
    assert [o["name"] for o in body["outputs"]] == ["a", "b"]


def test_nested_and_binary_data_are_taken(vision: Client) -> None:
    assert vision.post(INFER, inputs=[tensor(2, 2, data=[[1, 2], [3, 4]])])[0] == 200
    binary = tensor(2, 2, parameters={"binary_data_size": 16})
    del binary["data"]
    head = json.dumps({"inputs": [binary]}).encode()
    status, body = vision.ask(
        "POST", INFER, head + bytes(16), **{"Inference-Header-Content-Length": str(len(head))}
    )
    assert (status, body["outputs"][0]["shape"]) == (200, [2, 32])
    status, _ = vision.ask("POST", INFER, head, **{"Inference-Header-Content-Length": "99999"})
    assert status == 400


@pytest.mark.parametrize(
    "path", ["/v2/health/live", "/v2/health/ready", "/v2/models/vision/ready", "/v2/models/vision",
             "/v2/models/vision/versions/1/ready"],
)  # fmt: skip
def test_it_is_ready(vision: Client, path: str) -> None:
    assert vision.ask("GET", path)[0] == 200


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "inputs has to be a list"),
        ({"inputs": [1]}, "object with a name"),
        ({"inputs": [tensor(5, 1)]}, "batch-size must be between 1 and 4 for 'vision', got 5"),
        ({"inputs": [tensor(0, 1)]}, "got 0"),
        ({"inputs": [tensor(1, 2), tensor(2, 2)]}, "same first dimension"),
        ({"inputs": [tensor(1, 2, data=[1])]}, "2 elements, data 1"),
        ({"inputs": [tensor(1, 2, data=[[[1]]])]}, "2 elements, data 1"),
        ({"inputs": [tensor(1, 2, shape=[1, -2])]}, "whole numbers"),
        ({"inputs": [tensor(1, 2, shape=[1, 10**15])]}, "elements"),
        ({"inputs": [tensor(1, 2, datatype="FLOAT")]}, "'FLOAT' is none of BF16"),
        ({"inputs": [tensor(1, 2)], "outputs": [1]}, "outputs has to be"),
        ({"inputs": [tensor(1, 2)], "id": 7}, "its id a string"),
    ],
)
def test_bad_input_is_refused(vision: Client, body: dict[str, Any], says: str) -> None:
    status, answer = vision.post(INFER, **body)
    assert status == 400
    assert says in answer["error"]


def test_unknown_models_are_refused(vision: Client) -> None:
    status, answer = vision.post("/v2/models/video/infer", inputs=[tensor(1, 1)])
    assert (status, answer["error"]) == (404, "Request for unknown model: 'video' is not found")
    assert vision.post("/v1/completions", prompt="a")[0] == 404


FIELDS = st.sampled_from(["name", "shape", "datatype", "data", "parameters"])


@settings(max_examples=150)
@given(st.dictionaries(FIELDS, JSON), st.dictionaries(st.sampled_from(["id", "outputs"]), JSON))
def test_no_body_breaks_it(vision: Client, fields: dict[str, Any], rest: dict[str, Any]) -> None:
    status, _ = vision.post(INFER, inputs=[{**tensor(1, 1), **fields}], **rest)
    assert status in (200, 400)
