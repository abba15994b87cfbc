"""Models called by other names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tritonclient.grpc.aio import InferenceServerClient

from modelium.testing.scenarios import model
from tests.gateway.site import TENSORS, Site, visit
from tests.gateway.test_grpc import BOTH, tensor
from tests.gateway.test_kserve import INPUT
from tests.gateway.test_openai import HI

MODELS = [model("org/a", 20), model("b", 20)]
ALIASES = {"chat": "org/a", "team/fast": "b", "b": "org/a", "ghost": "gone"}
"""Of which "b" is a model itself, and "ghost" names none."""


def test_openais_clients_may_use_an_alias(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        client = here.openai()
        assert [card.id async for card in client.models.list()] == [
            "org/a", "b", "chat", "team/fast",
        ]  # fmt: skip
        card = await client.models.retrieve("team/fast")
        assert (card.id, card.model_extra) == ("team/fast", {"root": "b"})
        assert (await client.models.retrieve("b")).model_extra == {}
        for name, meant in (("chat", "org/a"), ("team/fast", "b"), ("b", "b")):
            chat = await client.chat.completions.create(model=name, messages=HI, max_tokens=2)
            assert chat.model == meant
            status, told = await here.post(f"/predict/{name}", {"prompt": "x", "max_tokens": 2})
            assert (status, told["model"]) == (200, meant)
        status, told = await here.post("/v1/completions", {"model": "ghost", "prompt": "x"})
        assert (status, told["error"]["code"]) == (404, "model_not_found")
        assert (await here.post("/models/chat/unload"))[0] == 404  # operators say what they mean
        await here.until(lambda: not here.running)
        here.house.cluster.journal.write_rows()
        rows = here.house.cluster.journal._db.execute(
            "SELECT DISTINCT model FROM requests WHERE outcome = 'completed'"
        )
        assert {name for (name,) in rows} == {"org/a", "b"}
        # Another model behind the name, from the next request on.
        here.desk.settings = replace(here.desk.settings, aliases={"chat": "b"})
        chat = await client.chat.completions.create(model="chat", messages=HI, max_tokens=2)
        assert chat.model == "b"

    visit(tmp_path, act, MODELS, gateway={"aliases": ALIASES})


def test_kserves_clients_may_use_an_alias(tmp_path: Path) -> None:
    async def act(here: Site) -> None:
        for name, meant in (("chat", "org/a"), ("team/fast", "b"), ("b", "b")):
            status, told = await here.post(f"/v2/models/{name}/infer", {"inputs": [INPUT]})
            assert (status, told["model_name"]) == (200, meant)
            assert (await here.get(f"/v2/models/{name}/ready"))[0] == 200
            assert (await here.get(f"/v2/models/{name}/versions/1"))[1]["name"] == meant
            assert (await here.get(f"/v2/models/{name}/versions/2"))[0] == 404
            assert (await here.get(f"/v2/models/{name}/config"))[0] == 404
        for path in ("/v2/models/ghost/infer", "/v2/models/ghost/infer/more"):
            status, told = await here.post(path, {"inputs": [INPUT]})
            assert status == 404
            assert "no model called" in told["error"]
        async with InferenceServerClient(here.grpc) as client:
            answer = (await client.infer("chat", [tensor()])).get_response()
            assert answer.model_name == "org/a"
            assert await client.is_model_ready("team/fast")
            assert (await client.get_model_metadata("chat")).name == "org/a"
            index = await client.get_model_repository_index()
            assert [row.name for row in index.models] == ["org/a", "b"]

    visit(tmp_path, act, MODELS, settings=TENSORS, address=BOTH, gateway={"aliases": ALIASES})
