"""What differs between two configurations, and what a running server cannot take up."""

from __future__ import annotations

from modelium.config import Config
from modelium.config.changes import RESTART, differences, keeping, needs_restart

OLD = Config.of(
    {
        "cluster": {"gpus": "2xl4"},
        "models": {"a": "qwen2.5-0.5b", "b": "qwen2.5-0.5b"},
        "gateway": {"organizations": {"acme": {"requests_per_minute": 1}}},
    }
)
NEW = Config.of(
    {
        "cluster": {"gpus": "4xl4"},
        "models": {"a": {"catalogue": "qwen2.5-0.5b", "kv": "1GiB"}, "c": "qwen2.5-0.5b"},
        "gateway": {
            "port": 9000,
            "max_wait": "5s",
            "organizations": {"acme": {"requests_per_minute": 2}},
        },
        "vllm": {"env": {"A": "1"}, "flags": ["--x"]},
        "live": {"folder": "elsewhere", "keep": "1d"},
        "policy": "gdsf",
    }
)


def test_differences_are_named_by_their_keys() -> None:
    assert set(differences(OLD, NEW)) == {
        "cluster.gpus", "models.a.kv", "models.b", "models.c", "gateway.port", "gateway.max_wait",
        "gateway.organizations.acme.requests_per_minute", "vllm.env", "vllm.flags", "live.folder",
        "live.keep", "policy",
    }  # fmt: skip
    assert differences(NEW, NEW) == []


def test_what_only_a_restart_takes_up_stays_as_it_was() -> None:
    assert needs_restart(OLD, NEW) == ["cluster.gpus", "vllm.env", "gateway.port", "live.folder"]
    kept = keeping(OLD, NEW)
    assert needs_restart(OLD, kept) == []
    assert (kept.gateway.port, kept.live.folder, kept.vllm.env) == (8080, ".modelium", {})
    assert (kept.gateway.max_wait, kept.live.keep, kept.vllm.flags) == (5.0, 86400.0, ["--x"])
    assert kept.models == NEW.models


def test_keys_that_go_together_are_kept_together() -> None:
    def given(**gateway: object) -> Config:
        return Config.of({"gateway": gateway})

    tls = {"tls_certificate": "a", "tls_key": "b"}
    one, other = given(port=1, grpc_port=2, **tls), given(port=2, grpc_port=1)
    fixed = ["tls_certificate", "tls_key", "grpc_port", "port"]
    for old, new in [(one, other), (other, one)]:
        assert keeping(old, new) == old
        assert set(needs_restart(old, new)) == {f"gateway.{key}" for key in fixed}
    moved = given(port=1, grpc_port=2, tls_certificate="c", tls_key="d", max_body="1KiB")
    assert needs_restart(one, moved) == ["gateway.max_body"]
    assert needs_restart(given(**tls), given(max_body="1KiB")) == []


def test_every_key_that_needs_a_restart_is_one_of_the_file() -> None:
    for key in RESTART:
        value = OLD
        for name in key.split("."):
            value = getattr(value, name)
