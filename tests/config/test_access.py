"""Who could call a server, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelium.cli import invoke
from modelium.config import Config
from modelium.config.access import access_notes, exposed
from modelium.gateway.access.keys import Keys
from modelium.serving import order


def test_a_file_of_keys_with_none_in_it_is_told_of(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    config = Config.of({"gateway": {"keys": str(file)}})
    assert access_notes(Config()) == []
    [told] = access_notes(config)
    assert told.startswith(f"no API key is in {file} yet")
    Keys(file).make("ops", "", ("user",))
    assert access_notes(config) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "gpu.example"])
def test_an_address_that_others_reach_needs_keys_or_a_word(
    tmp_path: Path, host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def written(**gateway: Any) -> str:
        file = tmp_path / "modelium.yaml"
        given = {"cluster": {"gpus": "l4"}, "gateway": {"host": host, **gateway}}
        file.write_text(json.dumps({**given, "live": {"folder": str(tmp_path / "live")}}))
        return str(file)

    assert invoke(["check", "--json", "--config", written()]) == 2
    found = [row for row in json.loads(capsys.readouterr().out) if row["what"] == "gateway"]
    assert [row["verdict"] for row in found] == ["wrong"]
    assert invoke(["run", "--emulate", "--config", written()]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"modelium: {found[0]['says']}"
    assert f"gateway.host is {host}, which others can reach" in line
    assert "--insecure" in line
    assert not (tmp_path / "live").exists()
    assert order(Path(written()), insecure=True).config.gateway.insecure
    assert order(Path(written(insecure=True)))
    assert order(Path(written(keys="keys.json")))
    assert order(Path(written()), host="127.0.0.1")


def test_what_is_open_is_told() -> None:
    gateway = {"host": "0.0.0.0", "insecure": True}
    [open_, read] = access_notes(Config.of({"gateway": gateway, "metrics": {"host": "10.1.1.1"}}))
    assert open_ == "insecure: everybody who reaches 0.0.0.0 may use the models"
    assert read.startswith("everybody who reaches 10.1.1.1:9090 may read the metrics")
    assert not exposed(Config())
    assert not access_notes(Config())
