"""Fleets from a few characters."""

import pytest

from modelium.catalog import gpu, parse_fleet
from modelium.errors import ConfigError, ProfileError


def test_one_node_unless_stated() -> None:
    fleet = parse_fleet("4xh100-80g")
    assert [node.id for node in fleet.nodes] == ["node0"]
    assert [(g.id, g.node, g.kind) for g in fleet.gpus] == [
        (f"gpu{i}", "node0", "h100-80g") for i in range(4)
    ]
    assert {g.memory_bytes for g in fleet.gpus} == {int(0.9 * gpu("h100").memory_bytes)}


def test_two_factors_are_nodes_and_gpus_of_each() -> None:
    fleet = parse_fleet("2x8xh100-80g")
    assert [sum(g.node == node.id for g in fleet.gpus) for node in fleet.nodes] == [8, 8]
    assert len({g.id for g in fleet.gpus}) == 16


def test_groups_are_nodes_of_their_own_and_ids_go_on() -> None:
    fleet = parse_fleet("8xa100-80g + 4 x L4")
    assert [node.id for node in fleet.nodes] == ["node0", "node1"]
    assert [(g.id, g.node, g.kind) for g in fleet.gpus[7:9]] == [
        ("gpu7", "node0", "a100-80g"),
        ("gpu8", "node1", "l4-24g"),
    ]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [("l4", ["l4-24g"]), ("3XL40S", ["l40s-48g"] * 3), ("1xrtx-4090", ["rtx-4090-24g"])],
)
def test_short_and_loud_forms(text: str, kinds: list[str]) -> None:
    assert [g.kind for g in parse_fleet(text).gpus] == kinds


def test_share_and_host_ram_can_be_given() -> None:
    fleet = parse_fleet("2xl4", share=0.5, host_bytes=123)
    assert fleet.gpus[0].memory_bytes == gpu("l4").memory_bytes // 2
    assert fleet.nodes[0].host_bytes == 123


def test_default_host_ram_is_twice_the_memory_of_the_nodes_gpus() -> None:
    small, large = parse_fleet("1xl4+8xh100").nodes
    assert small.host_bytes == 2 * gpu("l4").memory_bytes
    assert large.host_bytes == 16 * gpu("h100").memory_bytes


@pytest.mark.parametrize("text", ["", "4x", "h100+", "0xh100", "-2xh100", "1.5xh100", "4"])
def test_other_text_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"such as 4xh100-80g|expected 1 to"):
        parse_fleet(text)


def test_absurd_numbers_are_refused_before_anything_is_built() -> None:
    with pytest.raises(ConfigError, match="expected 1 to"):
        parse_fleet("99999x99999xh100")
    with pytest.raises(ConfigError, match="such as"):
        parse_fleet("9" * 5000 + "xh100")


def test_an_unknown_gpu_gets_a_suggestion() -> None:
    with pytest.raises(ProfileError, match="Did you mean 'h200'"):
        parse_fleet("4xh2000")


@pytest.mark.parametrize("share", [0, -1, 1.01, float("nan")])
def test_a_share_must_be_a_share(share: float) -> None:
    with pytest.raises(ConfigError, match="share"):
        parse_fleet("l4", share=share)
