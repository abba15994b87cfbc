"""KServe's v2 inference protocol over gRPC, as `tritonclient.grpc` speaks it.

Keys, limits, queues and books are those of HTTP; a client's deadline is how long its request may
wait. Headers of HTTP calls are metadata here, under the same names. Errors have gRPC's codes and
the words that they have over HTTP.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from modelium.errors import ConfigError, ModeliumError
from modelium.gateway.access.auth import Caller, permit
from modelium.gateway.address import Address, Certificate
from modelium.gateway.context import GatewayContext
from modelium.gateway.engines import BAD_GATEWAY
from modelium.gateway.errors import ApiError, starting
from modelium.gateway.kserve import api as kserve
from modelium.gateway.model_lookup import row_of
from modelium.gateway.proxy import seated
from modelium.gateway.request_parsing import request_for, request_id

try:
    import grpc
    from tritonclient.grpc import service_pb2 as pb

    from modelium.gateway.kserve.tensors import as_body, as_message
except ImportError as error:
    raise ConfigError(
        f"gateway.grpc_port: KServe's gRPC needs a package that is missing ({error}):"
        " pip install 'modelium[triton]'"
    ) from error

SERVICE = "inference.GRPCInferenceService"
LINGER_S = 2.0
"""Calls under way when the server ends have this long."""
CODES: Mapping[int, Any] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    405: grpc.StatusCode.UNIMPLEMENTED,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}
"""By HTTP status; all others are INTERNAL."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """One call: who makes it, and what it says beside its message."""

    desk: GatewayContext
    caller: Caller
    headers: Mapping[str, str]
    left_s: float | None
    """Until its client's deadline; None if it has none."""


async def infer(call: Call, message: Any) -> Any:
    """ModelInfer."""
    desk = call.desk
    model = desk.model_called(message.model_name)
    if not desk.admin.runtime_of(model):
        row_of(desk, model)  # raises
    kserve.check_version(model, message.model_version)
    payload, length = as_body(message)
    request = request_for(desk, call.caller, call.headers, request_id(call.headers), model)
    if call.left_s is not None:
        waits_s = desk.seats.max_wait_s if request.deadline_s is None else request.deadline_s
        request.deadline_s = min(waits_s, call.left_s)
    headers = {"Content-Type": "application/octet-stream", kserve.BINARY: str(length)}
    given = await seated(
        desk, request, lambda engine: kserve.infer_at(desk, engine, payload, request, headers)
    )
    split = given.headers.get(kserve.BINARY)
    try:
        return as_message(model, kserve.VERSION, given.body, None if split is None else int(split))
    except ValueError as error:
        why = f"the engine of {model} answered with malformed tensors: {error}"
        raise ApiError(BAD_GATEWAY, why) from None


async def live(call: Call, message: Any) -> Any:
    """ServerLive."""
    return pb.ServerLiveResponse(live=True)


async def ready(call: Call, message: Any) -> Any:
    """ServerReady: requests are admitted."""
    return pb.ServerReadyResponse(ready=not call.desk.admin.status()["stopping"])


async def server_metadata(call: Call, message: Any) -> Any:
    """ServerMetadata."""
    return pb.ServerMetadataResponse(**kserve.about_server())


async def model_ready(call: Call, message: Any) -> Any:
    """ModelReady: a request would be answered now."""
    row = row_of(call.desk, message.name)
    kserve.check_version(message.name, message.version)
    return pb.ModelReadyResponse(ready=row["status"] == "ready")


async def model_metadata(call: Call, message: Any) -> Any:
    """ModelMetadata: tensors as its engine tells them, none while none is ready."""
    row = row_of(call.desk, message.name)
    kserve.check_version(message.name, message.version)
    about = await kserve.about_model(call.desk, row)
    told = pb.ModelMetadataResponse(
        name=about["name"], versions=about["versions"], platform=about["platform"]
    )
    for side in ("inputs", "outputs"):
        for tensor in about[side]:
            getattr(told, side).add(
                name=tensor["name"], datatype=tensor["datatype"], shape=map(int, tensor["shape"])
            )
    return told


async def index(call: Call, message: Any) -> Any:
    """RepositoryIndex."""
    rows = kserve.repository(call.desk, message.ready)
    models = [pb.RepositoryIndexResponse.ModelIndex(**row) for row in rows]
    return pb.RepositoryIndexResponse(models=models)


async def load(call: Call, message: Any) -> Any:
    """RepositoryModelLoad; answers when it is ready."""
    await kserve.changed(call.desk, "load", message.model_name, message.parameters)
    return pb.RepositoryModelLoadResponse()


async def unload(call: Call, message: Any) -> Any:
    """RepositoryModelUnload; answers when it has gone."""
    await kserve.changed(call.desk, "unload", message.model_name, message.parameters)
    return pb.RepositoryModelUnloadResponse()


def _elsewhere(why: str) -> Callable[[Call, Any], Awaitable[Any]]:
    async def refuse(call: Call, message: Any) -> Any:
        raise ApiError(405, why)

    return refuse


Answer = Callable[[Call, Any], Awaitable[Any]]
CALLS: Mapping[str, tuple[Answer, str, Any]] = {
    "ServerLive": (live, "", pb.ServerLiveRequest),
    "ServerReady": (ready, "", pb.ServerReadyRequest),
    "ServerMetadata": (server_metadata, "user", pb.ServerMetadataRequest),
    "ModelReady": (model_ready, "user", pb.ModelReadyRequest),
    "ModelMetadata": (model_metadata, "user", pb.ModelMetadataRequest),
    "ModelInfer": (infer, "user", pb.ModelInferRequest),
    "RepositoryIndex": (index, "user", pb.RepositoryIndexRequest),
    "RepositoryModelLoad": (load, "admin", pb.RepositoryModelLoadRequest),
    "RepositoryModelUnload": (unload, "admin", pb.RepositoryModelUnloadRequest),
    "ModelConfig": (_elsewhere(kserve.ELSEWHERE["config"]), "user", pb.ModelConfigRequest),
    "ModelStatistics": (_elsewhere(kserve.ELSEWHERE["stats"]), "user", pb.ModelStatisticsRequest),
}
"""Name to its answer, the scope that it needs ("" for none), and the type of its message."""


@asynccontextmanager
async def grpc_listening(desk: GatewayContext, address: Address) -> AsyncIterator[str]:
    """Serve until the body ends; gives host and port. Raises ConfigError if it is not possible."""
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", desk.settings.max_body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ],
        maximum_concurrent_rpcs=desk.connections.bounds.connections,
    )
    server.add_generic_rpc_handlers((_handlers(desk),))
    host = f"[{address.host}]" if ":" in address.host else address.host
    where = f"{host}:{address.grpc_port}"
    try:
        port = _bind(server, where, desk)
    except RuntimeError:
        raise ConfigError(
            f"KServe's gRPC cannot listen on {where}. Choose another gateway.grpc_port"
        ) from None
    await server.start()
    try:
        yield f"{host}:{port}"
    finally:
        await server.stop(LINGER_S)


def _bind(server: Any, where: str, desk: GatewayContext) -> int:
    """The port; each new connection is shown the certificate that is the gateway's by then."""
    begun = desk.connections.certificate
    if begun is None:
        return int(server.add_insecure_port(where))

    def now() -> Any:
        return _shown(desk.connections.certificate or begun)

    return int(server.add_secure_port(where, grpc.dynamic_ssl_server_credentials(now(), now)))


def _shown(certificate: Certificate) -> Any:
    return grpc.ssl_server_certificate_configuration([(certificate.key, certificate.chain)])


def _handlers(desk: GatewayContext) -> Any:
    one = {
        name: grpc.unary_unary_rpc_method_handler(
            _answered(desk, answer, scope),
            request_deserializer=message.FromString,
            response_serializer=lambda told: told.SerializeToString(),
        )
        for name, (answer, scope, message) in CALLS.items()
    }
    many = grpc.stream_stream_rpc_method_handler(
        _streamed(desk),
        request_deserializer=pb.ModelInferRequest.FromString,
        response_serializer=lambda told: told.SerializeToString(),
    )
    return grpc.method_handlers_generic_handler(SERVICE, {**one, "ModelStreamInfer": many})


def _answered(
    desk: GatewayContext, answer: Answer, scope: str
) -> Callable[[Any, Any], Awaitable[Any]]:
    async def handle(message: Any, context: Any) -> Any:
        told = await _tried(desk, answer, scope, message, context)
        if not isinstance(told, ApiError):
            return told
        code = CODES.get(told.status, grpc.StatusCode.INTERNAL)
        trailing = tuple((name.lower(), value) for name, value in told.headers().items())
        return await context.abort(code, str(told), trailing)

    return handle


def _streamed(desk: GatewayContext) -> Callable[[Any, Any], AsyncIterator[Any]]:
    """ModelStreamInfer: one answer to each request, in their order; errors are answers, too."""

    async def handle(messages: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for message in messages:
            told = await _tried(desk, infer, "user", message, context)
            if isinstance(told, ApiError):
                yield pb.ModelStreamInferResponse(error_message=str(told))
            else:
                yield pb.ModelStreamInferResponse(infer_response=told)

    return handle


async def _tried(
    desk: GatewayContext, answer: Answer, scope: str, message: Any, context: Any
) -> Any:
    """The answer to a call, or the error that it ends with."""
    headers = {
        name.title(): value
        for name, value in context.invocation_metadata() or ()
        if isinstance(value, str)
    }
    # Web pages cannot speak gRPC: no name of theirs that points here has to be told from ours.
    headers["Host"] = "localhost"
    try:
        if not desk.is_open and answer is not live:
            raise starting()
        caller = permit(desk, headers, scope) if scope else Caller("", ())
        return await answer(Call(desk, caller, headers, context.time_remaining()), message)
    except ApiError as error:
        return error
    except ModeliumError as error:
        return ApiError(503, str(error))
    except Exception:
        log.exception("%s", type(message).__name__)
        return ApiError(500, "an error of the gateway itself; its log has more")
