"""The file that `modelium init` writes, and the JSON schema."""

from __future__ import annotations

import json
import re

import pytest

from modelium.config import Config, make_plan
from modelium.config.live import Live
from modelium.config.template import TEMPLATE, json_schema
from modelium.config.values import keys
from modelium.config.yaml import load


def test_the_template_is_valid_as_it_is() -> None:
    plan = make_plan(Config.of(load(TEMPLATE, "template")))
    assert len(plan.hardware.gpus) == 4
    assert plan.models["chat"].model.family == "qwen2.5-7b"


def test_every_commented_line_of_the_template_is_valid_too() -> None:
    body = TEMPLATE.split("\n\n", 1)[1]
    sections = re.findall(r"^(?:# )?([a-z_]+):", body, re.MULTILINE)
    opened = re.sub(r"^( *)# (?=[a-z_ -]+:|  |- )", r"\1", body, flags=re.MULTILINE)
    opened = re.sub(r"^    path: .*\n", "", opened, flags=re.MULTILINE)
    opened = re.sub(r"^policy: \[.*\n", "", opened, flags=re.MULTILINE)
    opened = re.sub(r"^  gpus: .*\n", "", opened, flags=re.MULTILINE)
    config = Config.of(load(opened, "template"))
    assert set(sections) == keys(Config).keys()
    assert config.cluster.nodes[1].gpus[0].count == 4
    assert config.models["classify"].infer is not None
    assert config.simulation.faults.schedule[0].for_ == 1200.0
    assert config.live == Live(), "what is commented out shows the default"
    assert load(opened, "template")["live"].keys() >= {"folder", "load_tries", "allow_pickle"}
    assert config.gateway.tls_key == "tls.key"
    assert config.gateway.organizations["acme"].requests_per_minute == 6000
    assert config.models["chat"].flags == ["--enforce-eager"]
    assert config.triton.repository == "/srv/triton"
    assert config.ray.address == "127.0.0.1:6379"
    plan = make_plan(config)
    assert plan.hardware.nodes[0].id == "big"
    assert plan.models["llama-3.1-8b"].profiles["h100-80g"].step["decode_kv"] == pytest.approx(5e-8)
    assert plan.models["llama-3.1-8b"].stages.unload_s == 1.0


def test_the_schema_knows_every_way_of_writing() -> None:
    schema = json.loads(json_schema())
    assert set(schema["properties"]) == keys(Config).keys()
    assert schema["additionalProperties"] is False
    kinds = {option.get("type") for option in schema["properties"]["models"]["anyOf"]}
    assert kinds == {"object", "array"}
    fault = schema["$defs"]["FaultAt"]["properties"]
    assert "for" in fault
    assert schema["$defs"]["Cluster"]["properties"]["host_memory"]["description"]
