"""`modelium explain` tells who waits for whom, also where nothing was decided yet."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from modelium.cli.live.explain import explain


class Scripted:
    """Answers as the server of one state would."""

    def __init__(self, **title: Any) -> None:
        model = {"status": "unloaded", "gpus": [], "waiting": 1, "error": "", "log": ""}
        model |= {"files_changed": "", "files_error": ""}
        chat = {**model, "name": "chat", "waits_for": "", "left_s": None, "waiting": 0}
        self._models = [chat, {**model, "name": "title", **title}]

    def decisions(self, model: str, limit: int) -> list[Any]:
        return []

    def models(self) -> list[dict[str, Any]]:
        return self._models


def said(monkeypatch: pytest.MonkeyPatch, *words: str, **title: Any) -> str:
    monkeypatch.setattr("modelium.cli.live.explain.client", lambda url, key: Scripted(**title))
    result = CliRunner().invoke(explain, list(words))
    assert result.exit_code == 0
    return result.output


WAITS = "waits for chat#3 to finish: it will be drained in about 12.0 s"


def test_it_says_for_whom_a_model_waits_and_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    told = said(monkeypatch, "title", waits_for=WAITS, left_s=15.0)
    assert told.splitlines() == [
        "title is unloaded; 1 wait for it",
        f"title {WAITS}; ready in about 15.0 s",
        "nothing was decided yet",
    ]


def test_without_a_model_it_says_so_of_each_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    told = said(monkeypatch, waits_for=WAITS, left_s=15.0)
    assert told.splitlines()[0] == f"title {WAITS}; ready in about 15.0 s"
    assert "chat is" not in told


def test_a_start_that_needs_nobody_else_says_only_when(monkeypatch: pytest.MonkeyPatch) -> None:
    told = said(monkeypatch, "title", waits_for="", left_s=15.0)
    assert "title should be ready in about 15.0 s" in told
    assert "ready in about" not in said(monkeypatch, "title", waits_for="", left_s=None)


def test_it_is_had_as_json_too(monkeypatch: pytest.MonkeyPatch) -> None:
    told = json.loads(said(monkeypatch, "title", "--json", waits_for=WAITS, left_s=15.0))
    assert told["model"]["waits_for"] == WAITS
    assert told["model"]["left_s"] == 15.0


def test_it_says_what_is_wrong_with_a_load_and_with_files(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = {"waits_for": "", "left_s": None}
    told = said(monkeypatch, "title", **idle, error="no room", log="one\ntwo\n")
    assert told.splitlines()[1:4] == ["its last load failed: no room", "  | one", "  | two"]
    files = {"files_changed": "config.json was changed", "files_error": "config.json: no JSON"}
    told = said(monkeypatch, "title", **idle, **files)
    assert told.splitlines()[1:3] == [
        "its files changed since it was loaded: config.json was changed",
        "its files cannot be served: config.json: no JSON",
    ]
