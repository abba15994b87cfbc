"""What a configuration means: nodes, GPUs, models, SLOs and the defaults of policies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelium import catalog
from modelium.config import Config, Plan, make_plan
from modelium.config.yaml import load
from modelium.control.costs import Links, Stages
from modelium.core import Slo
from modelium.errors import ConfigError
from modelium.units import GIB

H100 = catalog.gpu("h100-80g")
L8B = catalog.model("llama-3.1-8b")


def plan(text: str) -> Plan:
    """The plan of a configuration; one GPU unless it has a cluster."""
    given: dict[str, Any] = {"cluster": {"gpus": "h100-80g"}} | load(text, "test")
    return make_plan(Config.of(given))


def model(text: str, name: str = "llama-3.1-8b") -> Any:
    return plan(text).models[name]


class TestCluster:
    def test_a_fleet_is_nodes_and_gpus(self) -> None:
        hardware = plan("cluster: {gpus: 2x4xh100-80g+2xl4}").hardware
        assert [node.id for node in hardware.nodes] == ["node0", "node1", "node2"]
        assert [gpu.id for gpu in hardware.gpus] == [f"gpu{i}" for i in range(10)]
        assert [gpu.node for gpu in hardware.gpus] == (
            ["node0"] * 4 + ["node1"] * 4 + ["node2"] * 2
        )
        assert {gpu.kind for gpu in hardware.gpus[8:]} == {"l4-24g"}

    def test_a_list_of_gpus_is_one_node_unless_it_says_otherwise(self) -> None:
        hardware = plan(
            "cluster: {gpus: [h100, {kind: l4, count: 2}, {kind: l4, node: b}]}"
        ).hardware
        assert [(gpu.kind, gpu.node) for gpu in hardware.gpus] == [
            ("h100-80g", "node0"), ("l4-24g", "node0"), ("l4-24g", "node0"), ("l4-24g", "b"),
        ]  # fmt: skip

    def test_nodes_have_their_own_memory_and_links_over_those_of_all(self) -> None:
        hardware = plan(
            """
            cluster:
              host_memory: 100GiB
              links: {disk: 3GB/s, loader: 2GB/s}
              nodes:
                - {gpus: 2xh100-80g}
                - {name: small, gpus: l4, host_memory: 10GiB, links: {disk: 1GB/s}}
            """
        ).hardware
        assert [(node.id, node.host_bytes) for node in hardware.nodes] == [
            ("node0", 100 * GIB), ("small", 10 * GIB),
        ]  # fmt: skip
        assert hardware.links["node0"] == Links(3e9, 50e9, loader_bytes_per_s=2e9)
        assert hardware.links["small"] == Links(1e9, 25e9, loader_bytes_per_s=2e9)

    def test_host_memory_is_twice_that_of_the_gpus_by_default(self) -> None:
        (node,) = plan("cluster: {gpus: 3xh100-80g}").hardware.nodes
        assert node.host_bytes == 6 * H100.memory_bytes

    def test_a_share_of_each_gpus_memory_is_used(self) -> None:
        (gpu,) = plan("orchestration: {max_gpu_memory_utilization: 0.5}").hardware.gpus
        assert gpu.memory_bytes == H100.memory_bytes // 2
        (gpu,) = plan("cluster: {gpus: [{kind: h100, memory: 60GiB}]}").hardware.gpus
        assert gpu.memory_bytes == 54 * GIB

    @pytest.mark.parametrize(
        ("cluster", "said"),
        [
            (
                "{gpus: 4xh10}",
                r"cluster\.gpus: no GPU called 'h10'.* Did you mean 'h100'\? Another",
            ),
            ("{gpus: four}", r"cluster\.gpus: no GPU called 'four'.* Known are .*: four-24g, or"),
            ("{nodes: [{gpus: l4}, {gpus: [l4, foo]}]}", r"cluster\.nodes\[1\]\.gpus: .*'foo'"),
        ],
    )
    def test_a_gpu_of_which_not_even_the_memory_is_known_is_refused(
        self, cluster: str, said: str
    ) -> None:
        with pytest.raises(ConfigError, match=said):
            plan(f"cluster: {cluster}")

    def test_a_gpu_that_is_not_in_the_catalogue_needs_no_more_than_its_memory(self) -> None:
        gpus = "[foo-24g, {kind: bar, memory: 10GiB}, baz]"
        hardware = plan(f"cluster: {{gpus: {gpus}, kinds: {{Baz: {{memory: 5GiB}}}}}}").hardware
        sizes = [round(gpu.memory_bytes / hardware.share / GIB) for gpu in hardware.gpus]
        assert sizes == [24, 10, 5]
        assert hardware.kinds() == ["foo-24g", "bar", "baz"]
        foo, bar, baz = hardware.notes()
        assert foo == (
            "foo-24g is not in the catalogue: 600 GB/s, 125 TFLOPS, PCIe 32 GB/s assumed as for"
            " a10-24g (cluster.kinds says better)"
        )
        assert (bar[:3], baz[:3]) == ("bar", "baz")

    def test_a_name_with_a_slip_gets_a_suggestion_though_its_memory_is_there(self) -> None:
        [note] = plan("cluster: {gpus: 4xh1000-80g}").hardware.notes()
        assert note.endswith("Did you mean 'h100-80g'?")

    def test_what_is_configured_goes_before_the_catalogue_and_what_is_assumed(self) -> None:
        figures = "{bandwidth: 900GB/s, flops: 70e12, pcie: 16GB/s, nvlink: 50GB/s}"
        hardware = plan(
            f"cluster: {{gpus: foo-24g+l4, kinds: {{foo: {figures}, L4: {figures}}}}}"
        ).hardware
        assert hardware.notes() == []
        for spec in hardware.by_kind().values():
            assert (spec.bandwidth_bytes_per_s, spec.bf16_flops) == (900e9, 70e12)
            assert (spec.pcie_bytes_per_s, spec.nvlink_bytes_per_s) == (16e9, 50e9)
        assert hardware.links["node0"].pcie_bytes_per_s == 12.5e9
        half = plan("cluster: {gpus: foo-24g, kinds: {foo: {bandwidth: 900GB/s}}}").hardware
        assert "900 GB/s as configured; 125 TFLOPS, PCIe 32 GB/s assumed" in half.notes()[0]

    def test_figures_are_for_all_that_their_name_covers_and_for_no_other(self) -> None:
        kinds = "{foo: {bandwidth: 1GB/s}, foo-pcie: {bandwidth: 2GB/s}, h100: {bandwidth: 3GB/s}}"
        fleet = "foo-24g+foo-pcie-24g+fooo-24g+h100+h100-pcie+h100-94g+h100-mig-1g.10gb"
        found = plan(f"cluster: {{gpus: {fleet}, kinds: {kinds}}}").hardware.by_kind()
        rates = {kind: spec.bandwidth_bytes_per_s / 1e9 for kind, spec in found.items()}
        assert rates == {
            "foo-24g": 1, "foo-pcie-24g": 2, "fooo-24g": 600, "h100-80g": 3, "h100-pcie-80g": 2000,
            "h100-94g": 3350, "h100-80g-mig-1g.10gb": 3350 / 8,
        }  # fmt: skip

    def test_models_are_sized_for_the_memory_that_is_given(self) -> None:
        text = "cluster: {gpus: [{kind: h100-80g, memory: 24GiB, count: 4}]}\nmodels: [gemma-2-27b]"
        assert plan(text).models["gemma-2-27b"].model.gpus == 4
        both = "cluster: {gpus: [{kind: h100, memory: 24GiB}, h100]}\nmodels: [gemma-2-27b]"
        assert plan(both).models["gemma-2-27b"].model.gpus == 1

    def test_instances_of_mig_do_not_work_together(self) -> None:
        with pytest.raises(ConfigError, match="each of 1 GPUs, the most"):
            plan("cluster: {gpus: 7xh100-mig-1g.10gb}\nmodels: [llama-3.1-8b]")

    def test_without_gpus_models_are_sized_by_themselves(self) -> None:
        assert plan("cluster: {}\nmodels: [gemma-2-27b]").models["gemma-2-27b"].model.gpus == 1

    def test_two_nodes_of_one_name_are_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"cluster\.nodes: 'a' is there twice"):
            plan("cluster: {nodes: [{name: a, gpus: l4}, {name: a, gpus: l4}]}")


class TestModels:
    def test_names_mappings_and_lists_say_the_same(self) -> None:
        ways = [
            "models: {llama-3.1-8b: , chat: qwen2.5-7b}",
            "models: {llama-3.1-8b: {}, chat: {catalogue: qwen2.5-7b}}",
            "models: [llama-3.1-8b, {name: chat, catalogue: qwen2.5-7b}]",
        ]
        first, *others = [plan(way).models for way in ways]
        assert list(first) == ["llama-3.1-8b", "chat"]
        assert first["chat"].model.family == "qwen2.5-7b"
        assert others == [first, first]

    def test_own_keys_go_before_the_catalogue(self) -> None:
        made = model(
            """
            models:
              llama-3.1-8b: {gpus: 1, kv: 3GiB, kv_per_token: 1000, overhead: 2GiB, asleep: 1GiB,
                             pinned: true, min_replicas: 1, max_replicas: 2, spread: true}
            """
        ).model
        assert (made.kv_bytes, made.kv_bytes_per_token) == (3 * GIB, 1000)
        assert (made.overhead_bytes, made.asleep_bytes) == (2 * GIB, GIB)
        assert (made.pinned, made.spread, made.min_replicas, made.max_replicas) == (
            True,
            True,
            1,
            2,
        )

    @pytest.mark.parametrize(
        ("dtype", "bytes_per_weight"),
        [("auto", 2), ("bfloat16", 2), ("float32", 4), ("fp8", 1), ("int4", 0.5)],
    )
    def test_dtype_sets_the_size_of_weights(self, dtype: str, bytes_per_weight: float) -> None:
        made = model(f"models: [llama-3.1-8b]\nvllm: {{default_settings: {{dtype: {dtype}}}}}")
        assert made.model.weights_bytes == round(L8B.params * bytes_per_weight)
        assert made.spec.dtype_bytes == bytes_per_weight

    def test_given_weights_go_before_dtype_and_size_the_copy(self) -> None:
        made = model("models: {llama-3.1-8b: {weights: 100GiB, vllm: {dtype: fp8}}}\n"
                     "cluster: {gpus: 4xh100-80g}").model  # fmt: skip
        assert made.weights_bytes == 100 * GIB
        assert made.gpus == 2

    @pytest.mark.parametrize(
        ("longest", "tokens"), [(1024, 8192), (4096, 32768), (16384, 32768), (65536, 65536)]
    )
    def test_the_kv_pool_has_eight_short_sequences_or_one_of_the_longest(
        self, longest: int, tokens: int
    ) -> None:
        text = f"models: [llama-3.1-8b]\nvllm: {{default_settings: {{max_model_len: {longest}}}}}"
        made = model(text).model
        assert made.kv_bytes == tokens * made.kv_bytes_per_token

    def test_always_loaded_is_pinned(self) -> None:
        made = plan("models: [phi-4, qwen2.5-7b]\norchestration: {always_loaded: [phi-4]}").models
        assert {name: one.model.pinned for name, one in made.items()} == {
            "phi-4": True, "qwen2.5-7b": False,
        }  # fmt: skip
        with pytest.raises(
            ConfigError, match=r"always_loaded: no model called 'phi4'\. Did you mean"
        ):
            plan("models: [phi-4]\norchestration: {always_loaded: [phi4]}")

    @pytest.mark.parametrize(
        ("aliases", "why"),
        [
            ("{chat: phi4}", r"aliases\.chat: no model called 'phi4'\. Did you mean 'phi-4'"),
            ("{phi-4: phi-4}", r"aliases\.phi-4: a model has this name itself"),
            ("{a: b, b: phi-4}", r"aliases\.a: 'b' is an alias, too"),
        ],
    )
    def test_an_alias_names_a_model(self, aliases: str, why: str) -> None:
        with pytest.raises(ConfigError, match=why):
            plan(f"models: [phi-4]\ngateway: {{aliases: {aliases}}}")
        plan("models: [phi-4]\nmodel_repository: m\ngateway: {aliases: {chat: later}}")

    def test_an_slo_replaces_the_default_as_a_whole(self) -> None:
        text = "models: {llama-3.1-8b: {slo: {ttft: 1s}}, phi-4: }\n"
        assert model(text).model.slo == Slo(ttft_s=1)
        assert model(text, "phi-4").model.slo == catalog.DEFAULT_SLO
        assert model(text + "slo: {e2e: 1min}", "phi-4").model.slo == Slo(e2e_s=60)
        classes = plan("slo: {ttft: 1s, classes: {batch: {e2e: 1h}, any: {}}}").slo_classes
        assert classes == {"batch": Slo(e2e_s=3600), "any": Slo()}

    def test_load_stages_go_before_the_defaults(self) -> None:
        made = model("models: {llama-3.1-8b: {load: {process: 1s, wake: [10ms, 20ms]}}}")
        assert made.stages == Stages(process_s=1.0, wake_s=(0.01, 0.02))

    def test_a_folder_in_the_repository_is_analysed(self, tmp_path: Path) -> None:
        shape = {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2,
            "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 128, "vocab_size": 100, "max_position_embeddings": 512,
            "torch_dtype": "bfloat16",
        }  # fmt: skip
        header = json.dumps(
            {"w": {"dtype": "BF16", "shape": [1000], "data_offsets": [0, 2000]}}
        ).encode()
        folder = tmp_path / "tiny"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(shape))
        data = len(header).to_bytes(8, "little") + header + bytes(2000)
        (folder / "model.safetensors").write_bytes(data)
        made = model(f"model_repository: {tmp_path}\nmodels: {{t: {{path: tiny}}}}", "t")
        assert made.model.name == "t"
        assert made.model.weights_bytes == 2000
        assert made.model.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2  # K and V, layers, heads, dim, B
        with pytest.raises(ConfigError, match=r"^models\.t: .*gone is not a folder"):
            plan(f"model_repository: {tmp_path}\nmodels: {{t: {{path: gone}}}}")

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("models: [llama-3.1-9b]", r"models\.llama-3\.1-9b: no model .* Did you mean"),
            ("models: {x: {catalogue: lama-3.1-8b}}", r"models\.x: no model called 'lama-3\.1-8b'"),
            (
                "models: {x: {weights: 1GiB}}",
                r"models\.x: cannot estimate speed: unknown architecture",
            ),
            ("models: {phi-4: {min_replicas: 2, max_replicas: 1}}", "more than max_replicas, 1"),
            ("models: [llama-3.1-405b]", r"models\.llama-3\.1-405b: .* needs .* on each of"),
        ],
    )
    def test_what_cannot_be_is_refused_with_the_models_name(self, text: str, said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            plan(text)


def test_the_original_keys_are_defaults_of_policies_parameters() -> None:
    told = plan(
        """
        orchestration:
          auto_unload_after_seconds: 300
          min_qps_threshold: 0.5
          decision_interval_seconds: 10s
        """
    ).policy_defaults
    assert told == {"idle_s": "300.0", "qps_min": "0.5", "check_s": "10.0", "every_s": "10.0"}


@pytest.mark.parametrize(
    ("text", "policies"),
    [
        ("policy: lru", ("lru",)),
        ("policy: [lru, 'gdsf:a=1']", ("lru", "gdsf:a=1")),
        ("policy: {name: lru, parameters: {a: 6, x: yz}}", ("lru:a=6.0,x=yz",)),
        ("{}", ()),
    ],
)  # fmt: skip
def test_policies_are_written_in_several_ways(text: str, policies: tuple[str, ...]) -> None:
    assert plan(text).policies == policies


def test_the_whole_of_the_original_example_is_accepted() -> None:
    made = plan(
        """
        model_repository: /models
        vllm:
          enabled: true
          base_port: 8001
          default_settings: {dtype: float16, max_model_len: 4096}
        orchestration:
          auto_unload_after_seconds: 300
          min_qps_threshold: 0.1
          max_gpu_memory_utilization: 0.85
          always_loaded: []
          decision_interval_seconds: 10
        metrics: {enabled: true, port: 9090}
        """
    )
    assert made.hardware.share == 0.85
