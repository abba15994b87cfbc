"""What is said of the gateway at the start."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from modelium.config import Config
from modelium.serving.gateway_factory import GatewayFactory
from tests.serving.test_starting import kept_port


def notes(**gateway: Any) -> list[str]:
    async def run() -> list[str]:
        config = Config()  # whose port cannot be 0 in a file
        front = GatewayFactory(replace(config, gateway=replace(config.gateway, port=0, **gateway)))
        async with front.listening():
            return front.grpc_notes()

    return asyncio.run(run())


def test_where_kserves_grpc_is_served_is_told_of() -> None:
    assert notes() == []
    with kept_port() as port:
        assert notes(grpc_port=port) == [f"KServe's gRPC is at 127.0.0.1:{port}"]
        assert notes(grpc_port=port, host="::1") == [f"KServe's gRPC is at [::1]:{port}"]
    with pytest.raises(ValueError, match="port and grpc_port are both 8080"):
        Config.of({"gateway": {"grpc_port": 8080}})
