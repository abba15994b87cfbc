"""What is said of the gateway at the start."""

from __future__ import annotations

import pytest

from modelium.config import Config
from modelium.serving.front import grpc_note


def test_where_kserves_grpc_is_served_is_told_of() -> None:
    assert grpc_note(Config()) == []
    config = Config.of({"gateway": {"grpc_port": 8081}})
    assert grpc_note(config) == ["KServe's gRPC is at 127.0.0.1:8081"]
    with pytest.raises(ValueError, match="port and grpc_port are both 8080"):
        Config.of({"gateway": {"grpc_port": 8080}})
