"""KServe's protocol over gRPC, spoken by Triton's own client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.aio import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from modelium.errors import ConfigError
from modelium.gateway.access.connections import Bounds
from modelium.gateway.access.keys import Keys
from modelium.gateway.access.limits import Rate
from modelium.gateway.address import Address
from modelium.gateway.errors import ApiError
from modelium.gateway.kserve.tensors import TYPES, as_body, as_message
from modelium.live.requests.dispatcher import DispatchSettings
from modelium.testing.scenarios import model
from tests.gateway.site import TENSORS, Site, visit

BOTH = Address(port=0, grpc_port=0)
VALUES = np.arange(4, dtype=np.float32).reshape(2, 2)
TWO = [model("a", 20), model("org/b", 20)]


def tensor(values: Any = VALUES, kind: str = "FP32") -> InferInput:
    one = InferInput("input", list(values.shape), kind)
    one.set_data_from_numpy(values)
    return one


def code(error: pytest.ExceptionInfo[InferenceServerException]) -> str:
    return str(error.value.status()).removeprefix("StatusCode.")


def test_tritons_client_does_all_that_it_does_over_http(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    user = {"authorization": f"Bearer {keys.make('u', 'acme', ('user',))}"}
    admin = {"x-api-key": keys.make("root", "", ("user", "admin"))}

    async def act(here: Site) -> None:
        async with InferenceServerClient(here.grpc) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            for headers in ({}, {"authorization": "Bearer mk-wrong"}):
                with pytest.raises(InferenceServerException, match="API key") as error:
                    await client.is_model_ready("a", headers=headers)
                assert code(error) == "UNAUTHENTICATED"
            about = await client.get_server_metadata(headers=user)
            assert (about.name, "model_repository" in about.extensions) == ("modelium", True)
            assert not await client.is_model_ready("org/b", headers=user)
            with pytest.raises(InferenceServerException, match="scope admin") as error:
                await client.load_model("org/b", headers=user)
            assert code(error) == "PERMISSION_DENIED"
            await client.load_model("org/b", headers=admin)
            assert await client.is_model_ready("org/b", "1", headers=user)
            index = await client.get_model_repository_index(headers=user)
            states = {one.name: (one.version, one.state) for one in index.models}
            assert states == {"a": ("1", "UNAVAILABLE"), "org/b": ("1", "READY")}
            told = await client.get_model_metadata("org/b", headers=user)
            assert (told.name, list(told.inputs[0].shape)) == ("org/b", [-1, -1])

            answer = await client.infer("org/b", [tensor()], request_id="7", headers=user)
            made = answer.as_numpy("output")
            assert (made.dtype, made.shape) == (np.float32, (2, 32))
            assert (answer.get_response().id, answer.get_response().model_name) == ("7", "org/b")
            wanted = [InferRequestedOutput("output")]
            answer = await client.infer("org/b", [tensor()], outputs=wanted, headers=user)
            assert answer.as_numpy("output").shape == (2, 32)

            for name, version, why in [
                ("org/c", "", "no model called 'org/c'. Did you mean 'org/b'"),
                ("org/b", "2", "org/b has no version '2'"),
            ]:
                for call in (
                    client.infer(name, [tensor()], model_version=version, headers=user),
                    client.get_model_metadata(name, version, headers=user),
                    client.is_model_ready(name, version, headers=user),
                ):
                    with pytest.raises(InferenceServerException, match=why) as error:
                        await call
                    assert code(error) == "NOT_FOUND"
            with pytest.raises(InferenceServerException, match="configurations") as error:
                await client.get_model_config("org/b", headers=user)
            assert code(error) == "UNIMPLEMENTED"
            with pytest.raises(InferenceServerException, match="for Prometheus"):
                await client.get_inference_statistics("org/b", headers=user)
            with pytest.raises(InferenceServerException, match="nonsense") as error:
                await client.infer("org/b", [tensor()], headers={**user, "x-priority": "nonsense"})
            assert code(error) == "INVALID_ARGUMENT"
            await client.unload_model("org/b", headers=admin)
            assert not await client.is_model_ready("org/b", headers=user)
        assert [row[:2] for row in await here.journal()] == [("acme", "completed")] * 2

    visit(tmp_path, act, TWO, keys=keys, settings=TENSORS, address=BOTH)


def test_a_stream_has_an_answer_to_each_request(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        async def requests() -> AsyncIterator[dict[str, Any]]:
            for name in ("a", "nobody", "a"):
                yield {"model_name": name, "inputs": [tensor()]}

        async with InferenceServerClient(here.grpc) as client:
            told = [one async for one in client.stream_infer(requests())]
        assert [result is not None for result, _ in told] == [True, False, True]
        assert "no model called 'nobody'" in str(told[1][1])
        assert [row[1] for row in await here.journal()] == ["completed"] * 2

    visit(tmp_path, act, settings=TENSORS, address=BOTH)


def test_a_clients_deadline_and_its_leave_end_the_wait(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        async with InferenceServerClient(here.grpc) as client:
            with pytest.raises(InferenceServerException) as error:
                await client.infer("a", [tensor()], client_timeout=0.3)
            assert code(error) in ("DEADLINE_EXCEEDED", "UNAVAILABLE")
            await here.until(lambda: here.waiting() == 0)
            with pytest.raises(InferenceServerException, match="no engine of a was") as error:
                await client.infer("a", [tensor()], headers={"x-max-wait": "0.1"})
            assert code(error) == "UNAVAILABLE"
            asking = asyncio.create_task(client.infer("a", [tensor()]))
            await here.until(lambda: here.waiting() == 1)
            queue = here.house.cluster.dispatcher.queue
            assert queue.next_deadline_s() - here.house.cluster.now_s() > 300
            asking.cancel()
            await here.until(lambda: here.waiting() == 0)
        rows = [row[1] for row in await here.journal()]
        assert rows[0] in ("cancelled", "refused")
        assert rows[1:] == ["refused", "cancelled"]

    visit(tmp_path, act, settings=TENSORS, address=BOTH, held=True)


def test_limits_hold_and_say_when_to_come_again(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        async with grpc.aio.insecure_channel(here.grpc) as channel:
            infer = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer",
                request_serializer=pb.ModelInferRequest.SerializeToString,
                response_deserializer=pb.ModelInferResponse.FromString,
            )
            message = pb.ModelInferRequest(model_name="a")
            one = message.inputs.add(name="input", datatype="FP32", shape=[2, 2])
            one.contents.fp32_contents.extend([1, 2, 3, 4])
            assert list((await infer(message)).outputs[0].shape) == [2, 32]
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await infer(message)
            assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "1 requests per minute" in str(error.value.details())
            assert ("retry-after", "60") in list(error.value.trailing_metadata())

    rate = Rate(requests_per_minute=1)
    visit(tmp_path, act, settings=TENSORS, address=BOTH, rate=rate, clock=lambda: 0.0)


def test_more_calls_at_a_time_than_files_allow_are_refused(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        async with InferenceServerClient(here.grpc) as client:
            asking = [asyncio.create_task(client.infer("a", [tensor()])) for _ in range(2)]
            await here.until(lambda: here.waiting() == 2)
            with pytest.raises(InferenceServerException) as error:
                await client.is_server_live()
            assert code(error) == "RESOURCE_EXHAUSTED"
            here.house.go.set()
            await asyncio.gather(*asking)
            assert await client.is_server_live()

    more: dict[str, Any] = {"held": True, "dispatch": DispatchSettings(), "bounds": Bounds(2, 2)}
    visit(tmp_path, act, settings=TENSORS, address=BOTH, **more)


def test_a_language_model_takes_no_tensors(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        async with InferenceServerClient(here.grpc) as client:
            with pytest.raises(InferenceServerException, match="is a language model") as error:
                await client.infer("a", [tensor()])
        assert code(error) == "INVALID_ARGUMENT"

    visit(tmp_path, act, address=BOTH)


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        port = int(here.grpc.rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            await asyncio.to_thread(
                visit, tmp_path / "other", act, address=Address(port=0, grpc_port=port)
            )

    visit(tmp_path, act, address=BOTH)


NUMBERS = {
    kind: np.dtype(name) for kind, (field, name) in TYPES.items() if field and kind != "BYTES"
}


@given(st.sampled_from(sorted(NUMBERS)), st.lists(st.integers(0, 1), min_size=1), st.binary())
def test_typed_contents_are_the_bytes_that_they_mean(
    kind: str, values: list[int], text: bytes
) -> None:
    message = pb.ModelInferRequest(model_name="a", id="7")
    one = message.inputs.add(name="x", datatype=kind, shape=[len(values)])
    getattr(one.contents, TYPES[kind][0]).extend(values)
    said = message.inputs.add(name="t", datatype="BYTES", shape=[1])
    said.contents.bytes_contents.append(text)
    body, length = as_body(message)
    head = json.loads(body[:length])
    size = head["inputs"][0]["parameters"]["binary_data_size"]
    assert np.frombuffer(body[length:][:size], NUMBERS[kind]).tolist() == values
    assert body[length + size :] == serialize_byte_tensor(np.array([text], object)).item()
    assert head["parameters"] == {"binary_data_output": True}


def test_odd_messages_are_refused() -> None:
    message = pb.ModelInferRequest(raw_input_contents=[b"x"])
    with pytest.raises(ApiError, match="has 1 tensors, expected 0"):
        as_body(message)
    for kind, values, why in [("FP16", [], "raw_input_contents"), ("INT8", [300], "no INT8")]:
        message = pb.ModelInferRequest()
        one = message.inputs.add(name="x", datatype=kind, shape=[1])
        one.contents.int_contents.extend(values)
        with pytest.raises(ApiError, match=why):
            as_body(message)


def test_answers_in_binary_and_in_json_are_the_same_message() -> None:
    raw = VALUES.tobytes()
    about = {"name": "y", "datatype": "FP32", "shape": [2, 2]}
    text = {"name": "t", "datatype": "BYTES", "shape": [1], "data": ["hé"]}
    half = {"name": "b", "datatype": "BF16", "shape": [1], "data": [1.5]}
    plain = {**about, "data": VALUES.reshape(-1).tolist()}
    head = json.dumps(
        {"outputs": [{**about, "parameters": {"binary_data_size": len(raw), "k": 3}}, text, half]}
    ).encode()
    binary = as_message("a", "1", head + raw, len(head))
    assert binary.outputs[0].parameters["k"].int64_param == 3
    in_json = as_message("a", "1", json.dumps({"outputs": [plain, text, half]}).encode(), None)
    assert binary.raw_output_contents == in_json.raw_output_contents
    assert binary.raw_output_contents[1] == b"\x03\x00\x00\x00h\xc3\xa9"
    assert binary.raw_output_contents[2] == b"\xc0\x3f"
    for body, length in [(head + raw[:-1], len(head)), (b"{}", None), (b"[]", None), (b"x", None)]:
        with pytest.raises(ValueError, match=r"\w"):
            as_message("a", "1", body, length)
