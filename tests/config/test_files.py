"""Finding a file, reading it, and what is said of a wrong one."""
# ruff: noqa: E501 (a line a wrong file, beside what is said of it)

from __future__ import annotations

from pathlib import Path

import pytest

from modelium.config import examine, find, read, search
from modelium.errors import ConfigError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is both home and where we are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MODELIUM_CONFIG", raising=False)
    return tmp_path


def wrong(folder: Path, text: str) -> str:
    """The one line that a wrong file is refused with, without the path."""
    path = folder / "modelium.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read(path)
    said = str(caught.value)
    assert said.startswith(str(path))
    assert "\n" not in said
    return said.removeprefix(str(path))


def test_places_are_searched_in_the_documented_order(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = home / "named.yaml"
    assert find() is None
    own = home / ".modelium" / "modelium.yaml"
    own.parent.mkdir()
    own.touch()
    assert find() == own
    Path("modelium.yaml").touch()
    assert find() == Path("modelium.yaml")
    named.touch()
    monkeypatch.setenv("MODELIUM_CONFIG", str(named))
    assert find() == named
    assert find(own) == own
    assert search() == [
        named, Path("modelium.yaml"), own, Path("/etc/modelium/modelium.yaml"),
    ]  # fmt: skip


def test_a_named_file_that_is_absent_is_an_error(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("modelium.yaml").touch()
    with pytest.raises(ConfigError, match=r"^other\.yaml: no such file\. `modelium init`"):
        find(Path("other.yaml"))
    monkeypatch.setenv("MODELIUM_CONFIG", "gone.yaml")
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such file \(named by \$MODELIUM_CONFIG"):
        find()


def test_a_folder_is_no_configuration(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"a folder; expected a file such as modelium\.yaml"):
        find(home)


def test_a_model_may_have_the_name_of_a_day(home: Path) -> None:
    path = home / "modelium.yaml"
    path.write_text("models: {2026-11-25: {catalogue: phi-4}}")
    assert list(read(path).models) == ["2026-11-25"]


def test_an_empty_file_is_a_configuration(home: Path) -> None:
    path = home / "modelium.yaml"
    path.touch()
    assert read(path).models == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("clutser: {}", ": clutser: unknown key. Did you mean 'cluster'?"),
        ("cluster: {gpus: [{kind: l4, memory: 0}]}", ": cluster.gpus[0].memory: 0, expected greater than 0"),
        ("cluster: {kinds: {foo: {flop: 1e12}}}", ": cluster.kinds.foo.flop: unknown key. Did you mean 'flops'?"),
        ("cluster: {kinds: {h100: {}, h100-80g: {}}}", ": cluster.kinds: 'h100-80g' is there twice"),
        ("cluster: {gpus: 4}", ": cluster.gpus: 4 is neither a fleet such as 4xh100-80g nor a list of GPUs"),
        ("cluster: {gpus: h100, nodes: [{gpus: h100}]}", ": cluster: give either gpus or nodes, not both"),
        ("cluster: {nodes: [{gpus: l4, links: {disk: 6GX/s}}]}", ": cluster.nodes[0].links.disk: '6GX' is not a bandwidth such as 6GB/s: unknown unit 'GX'."),
        ("cluster: {nodes: [{name: a}]}", ": cluster.nodes[0].gpus: is missing"),
        ("models: {a: {slo: {ttft: 2q}}}", ": models.a.slo.ttft: '2q' is not a duration such as 30s: unknown unit 'q'."),
        ("models: {a: {slo: {ttft: -2s}}}", ": models.a.slo.ttft: '-2s' is not a duration such as 30s"),
        ("models: {a: {pined: true}}", ": models.a.pined: unknown key. Did you mean 'pinned'?"),
        ("models: {a: {vllm: {dtype: bf16}}}", ": models.a.vllm.dtype: 'bf16', expected 'auto', 'bfloat16'"),
        ("models: [a, {gpus: 2}]", ": models: entry 1 is {'gpus': 2}, expected a name, or keys with a name"),
        ("models: [a, a]", ": models: 'a' is there twice"),
        ("slo: 3", ": slo: 3 is not a section of keys and values"),
        ("simulation: {router: rr}", ": simulation.router: 'rr', expected 'least_outstanding', "),
        ("simulation: {faults: {schedule: [{at: 1h, kind: crsh}]}}", ": simulation.faults.schedule[0].kind: 'crsh', expected 'gpu_lost'"),
        ("simulation: {faults: {load_failure: 2}}", ": simulation.faults.load_failure: 2, expected less than or equal to 1"),
        ("orchestration: {max_gpu_memory_utilization: 90}", ": orchestration.max_gpu_memory_utilization: 90, expected less than or equal to 1"),
        ("orchestration: {auto_unload_after: 9}", ": orchestration.auto_unload_after: unknown key. Did you mean 'auto_unload_after_seconds'?"),
        ("policy: {nam: lru}", ": policy.nam: unknown key. Did you mean 'name'?"),
        ("vllm: {base_port: http}", ": vllm.base_port: 'http', expected a valid integer"),
        ("- 1", ": expected sections such as 'cluster:', found [1]"),
        ("a: [", ", line 1: not YAML: "),
        ("slo: {ttft: 1s}\nslo: {ttft: 2s}", ", line 2: not YAML: 'slo' is there twice"),
        ("a: \x00", ": not YAML: "),
        ("2026-13-45: {}", ": 2026-13-45: unknown key. There are cluster,"),
        ("a: !!int x", ": not YAML: a value does not fit its tag: "),
        ("a: " + 9000 * "[", ": not YAML: nested too deeply"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_line_with_the_keys_path(home: Path, text: str, said: str) -> None:
    assert wrong(home, text).startswith(said)


def test_all_problems_are_listed_but_one_is_enough_for_an_error(home: Path) -> None:
    text = "slo: 3\nsimulation: {router: rr, drian: 1h}\nmodels: {a: {gpus: none}}"
    assert wrong(home, text).endswith("(2 more: modelium check)")
    config, problems = examine(home / "modelium.yaml")
    assert config is None
    assert [p.split(": ")[1] for p in problems] == ["models.a.gpus", "slo", "simulation.drian"]


def test_bytes_that_are_no_text_are_refused(home: Path) -> None:
    Path("modelium.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"modelium\.yaml: cannot be read: "):
        read(Path("modelium.yaml"))
