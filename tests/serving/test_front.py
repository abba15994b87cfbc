"""What is said of the gateway at the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelium.config import Config
from modelium.gateway.keys import Keys
from modelium.serving.front import grpc_note, without_keys


def test_a_file_of_keys_with_none_in_it_is_told_of(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    config = Config.of({"gateway": {"keys": str(file)}})
    assert without_keys(Config()) == []
    [told] = without_keys(config)
    assert told.startswith(f"no API key is in {file} yet")
    Keys(file).make("ops", "", ("user",))
    assert without_keys(config) == []


def test_where_kserves_grpc_is_served_is_told_of() -> None:
    assert grpc_note(Config()) == []
    config = Config.of({"gateway": {"grpc_port": 8081}})
    assert grpc_note(config) == ["KServe's gRPC is at 127.0.0.1:8081"]
    with pytest.raises(ValueError, match="port and grpc_port are both 8080"):
        Config.of({"gateway": {"grpc_port": 8080}})
