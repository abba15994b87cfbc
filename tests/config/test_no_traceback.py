"""Any configuration is served, simulated and checked, or refused in one line: never a traceback."""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelium.catalog import gpu, kind_of
from modelium.cli import invoke
from modelium.cli.diagnosis import WRONG, diagnose
from modelium.config import make_plan, read
from modelium.config.planning.assumed import calibration
from modelium.config.planning.hardware import on_fleet
from modelium.config.template import TEMPLATE
from modelium.errors import ConfigError, ModeliumError
from modelium.experiments.experiment import Experiment, prepare
from modelium.serving import order
from modelium.serving.hardware import hardware
from modelium.serving.served_models import ServedModels
from tests.catalog.test_gpunames import DRIVER_NAMES
from tests.live import tiny
from tests.live.nvml import GIB, Facts, FakeDriver

ROOT = Path(__file__).resolve().parents[2]
GPU_NAMES = (
    "h100", "h100-80g", "l4", "NVIDIA H100 PCIe", "NVIDIA GeForce RTX 4060 Ti", "rtx-3080-10g",
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "Colossus 1", "foo", "foo-24g", "h10", "", "-", "é", "7",
)  # fmt: skip
MODEL_NAMES = ("llama-3.1-8b", "phi-4", "llama-3.1-70b", "chat", "nonsense", "", "a b", "7")
RARELY = 30
"""One value or section in so many is one that should be refused."""


def usually(good: st.SearchStrategy[Any], bad: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what makes sense: else the first wrong value is all that is ever seen."""
    return st.integers(1, RARELY).flatmap(lambda draw: bad if draw == RARELY else good)


def some(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A section with some of these keys, or something else in its place."""
    good = st.fixed_dictionaries({}, optional=values)
    return usually(good, st.sampled_from([None, 3, "x", [], {"x": 1}]))


NUMBERS = usually(
    st.sampled_from([1, 2, 4, 64, 4096]),
    st.sampled_from([0, 3, -1, 0.5, 1e-9, 1e30, 10**30, "1", "x", None, True]),
)
SIZES = usually(
    st.sampled_from(["1MiB", "4GiB", "10GiB", "24GB", "80GiB", 1 << 30]),
    st.sampled_from([0, "1", "0", "1e5TiB", "1e999", 10**400, "x", -1]),
)
TIMES = usually(
    st.sampled_from(["0s", "1ms", "2s", "1h", 3]),
    st.sampled_from([0, "inf", "1e999", "1e300d", "nan", ".inf", 10**400, "x", -1, None]),
)
RATES = usually(
    st.sampled_from(["1GB/s", "32GB/s", "900GB/s", 1e9]),
    st.sampled_from(["0", 0, "1e-9", "1e999", "1e308GB/s", "x", -1, None]),
)
SHARES = usually(st.sampled_from([0.1, 0.5, 0.9, 1]), NUMBERS)
FLAGS = usually(st.booleans(), st.just("x"))
KINDS = usually(
    st.sampled_from(GPU_NAMES[:7]), st.one_of(st.sampled_from(GPU_NAMES), st.text(max_size=12))
)
MODELS = usually(st.sampled_from(MODEL_NAMES[:4]), st.sampled_from(MODEL_NAMES))


FLEETS = st.builds("{}x{}".format, usually(st.sampled_from([1, 2, 4, "2x4"]), st.just(0)), KINDS)
GROUPS = st.one_of(
    FLEETS,
    KINDS,
    st.lists(st.one_of(KINDS, some(kind=KINDS, count=NUMBERS, memory=SIZES)), max_size=3),
)
LINKS = some(disk=RATES, pcie=RATES, loader=RATES, gpus_per_switch=NUMBERS)
FIGURES = some(
    memory=SIZES, bandwidth=RATES, flops=NUMBERS, fp8_flops=NUMBERS, pcie=RATES, nvlink=RATES
)
CLUSTER = some(
    gpus=GROUPS,
    nodes=st.lists(some(name=MODELS, gpus=GROUPS, host_memory=SIZES, links=LINKS), max_size=2),
    kinds=st.dictionaries(KINDS, FIGURES, max_size=3),
    use=st.lists(st.one_of(st.integers(-1, 3), KINDS), max_size=2),
    host_memory=SIZES,
    links=LINKS,
)
SLO = some(ttft=TIMES, tpot=TIMES, e2e=TIMES)
LOAD = some(process=TIMES, graphs=TIMES, wake=st.lists(TIMES, max_size=3), unload=TIMES)
ENGINE = some(
    dtype=usually(st.sampled_from(["fp8", "int4", "bfloat16"]), st.just("bf16")),
    max_model_len=NUMBERS,
    max_num_seqs=NUMBERS,
    max_num_batched_tokens=NUMBERS,
    block_size=NUMBERS,
)
MODEL = some(
    catalogue=MODELS,
    path=usually(
        st.sampled_from(["tiny", "tiny", "code"]),
        st.sampled_from(["empty", "nothing", "..", "", "tiny/config.json", "\0"]),
    ),
    gpus=NUMBERS,
    weights=SIZES,
    kv=SIZES,
    kv_per_token=SIZES,
    overhead=SIZES,
    asleep=SIZES,
    slo=SLO,
    pinned=FLAGS,
    min_replicas=NUMBERS,
    max_replicas=NUMBERS,
    spread=FLAGS,
    vllm=ENGINE,
    infer=some(latency=st.lists(TIMES, max_size=2), per_token=TIMES, servers=NUMBERS),
    load=LOAD,
    runtime=usually(st.sampled_from(["vllm", "triton", "ray", "emulated"]), st.just("x")),
    settings=st.dictionaries(MODELS, NUMBERS, max_size=1),
)
STEP = st.fixed_dictionaries(
    {"decode_hinge": NUMBERS, "mixed_hinge": NUMBERS, "decode_c": TIMES, "mixed_c": TIMES}
)
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "cluster": CLUSTER,
        "models": st.one_of(
            st.dictionaries(MODELS, MODEL, max_size=3), st.lists(MODELS, max_size=3)
        ),
        "load": LOAD,
        "profiles": st.lists(some(model=MODELS, gpu=KINDS, tp=NUMBERS, step=STEP), max_size=2),
        "slo": SLO,
        "policy": usually(
            st.sampled_from(["lru", ["ilp:every_s=15", "gdsf"]]),
            st.sampled_from(["nonsense", "lru:x=1", "", [], 7, None]),
        ),
        "orchestration": some(
            max_gpu_memory_utilization=SHARES,
            always_loaded=st.lists(MODELS, max_size=1),
            auto_unload_after_seconds=TIMES,
            decision_interval_seconds=TIMES,
        ),
        "vllm": some(default_settings=ENGINE, enabled=FLAGS),
        "simulation": some(
            drain=TIMES,
            bins=NUMBERS,
            limits=some(loads_at_once=NUMBERS, min_residency=TIMES),
            faults=some(gpu_mtbf=TIMES, load_failure=SHARES, retries=NUMBERS),
        ),
        "emulated": some(enabled=FLAGS, speed=NUMBERS),
        "gateway": some(
            port=NUMBERS,
            max_wait=TIMES,
            places=NUMBERS,
            queue_limit=NUMBERS,
            aliases=st.dictionaries(MODELS, MODELS, max_size=1),
        ),
        "live": some(load_deadline=TIMES, load_tries=NUMBERS, folder=st.just("live")),
    },
)
LISTED = st.lists(
    st.tuples(
        KINDS.filter(lambda name: name.strip() != ""),
        st.sampled_from([1 << 20, 10 * GIB, 24 * GIB, 80 * GIB, 0]),
        st.sampled_from([None, Facts("8.6", 320, 9501, 1710, 8704), Facts("13.0", 0, 1, 0, 7)]),
    ),
    max_size=3,
)
"""Names, bytes and facts of the GPUs that the driver lists; none: there is no driver."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with models and a trace, and a driver that this process finds."""
    folder = tmp_path_factory.mktemp("any")
    tiny.llama(folder / "tiny")
    (folder / "empty").mkdir()
    (folder / "code").mkdir()
    (folder / "code" / "model.py").write_text("class Model: pass\n")
    rows = "".join(f"{i},{name},10,10\n" for i, name in enumerate(("llama-3.1-8b", "chat")))
    (folder / "trace.csv").write_text(f"arrival_s,model,prompt_tokens,output_tokens\n{rows}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        patch.delenv("NVIDIA_VISIBLE_DEVICES", raising=False)
        patch.setenv("FAKE_NVML_STATE", str(folder / "nvml.txt"))
        yield folder


@pytest.fixture(scope="module")
def driver(place: Path) -> FakeDriver:
    fake = FakeDriver(place)
    ctypes.CDLL(str(fake.library))  # pynvml asks for it by name, and gets the one that is loaded
    return fake


def list_gpus(driver: FakeDriver, gpus: list[tuple[str, int, Facts | None]]) -> None:
    """Have the driver list these GPUs from now on; without any it is not loaded."""
    driver.loaded = bool(gpus)
    driver.names = [name for name, _, _ in gpus]
    driver.uuids = [f"GPU-{i:04x}" for i in range(len(gpus))]
    driver.status, driver.percent = [0] * len(gpus), [0] * len(gpus)
    driver.totals = {i: size for i, (_, size, _) in enumerate(gpus)}
    driver.facts = {i: facts for i, (_, _, facts) in enumerate(gpus) if facts is not None}
    driver.write()


def refused(do: Callable[[], object]) -> str:
    """Why it was refused, in one line; empty if it was not."""
    why = ""
    try:
        do()
    except ModeliumError as error:
        why = str(error)
    assert "\n" not in why
    return why


def run(config: Path, gpus: str, *, emulate: bool = False) -> None:
    """What `modelium run` does before anything is started."""
    asked = order(config, gpus=gpus, emulate=emulate)
    _, used, plan, _ = hardware(asked)
    stock = ServedModels(used, plan)
    given = stock.given(lambda runtime: None)
    for one in given.served:
        for place in given.gpus:
            assert stock.work_s(one.model, place.kind, 100.0, 10.0) >= 0


def simulate(config: Path, trace: Path, gpus: str) -> None:
    """What `modelium simulate` does before anything is played."""
    prepared = prepare(Experiment(trace, config, gpus=gpus))
    given = prepared.plan.sim_input(prepared.assumed)
    calibration(prepared.plan)
    for policy in prepared.plan.policies:
        prepared.policy(policy, 0)
    for model in given.models:
        for place in given.gpus:
            assert given.work(model, place.kind, 100.0, 10.0) >= 0


def try_all(place: Path, config: Path, gpus: str = "") -> list[str]:
    """Why each command refuses the configuration; empty texts where it does not."""
    wrong = [one.says for one in diagnose(config) if one.verdict == WRONG and one.what == "config"]
    assert all(len(says.splitlines()) == 1 for says in wrong), wrong
    return [
        "; ".join(wrong),
        refused(lambda: run(config, gpus)),
        refused(lambda: run(config, gpus, emulate=True)),
        refused(lambda: simulate(config, place / "trace.csv", gpus)),
    ]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(CONFIGS, LISTED, st.one_of(st.just(""), FLEETS))
def test_no_configuration_ends_in_a_traceback(
    place: Path,
    driver: FakeDriver,
    config: dict[str, Any],
    listed: list[tuple[str, int, Facts | None]],
    gpus: str,
) -> None:
    list_gpus(driver, listed)
    path = place / "modelium.yaml"
    path.write_text(json.dumps(config))
    try_all(place, path, gpus)


@pytest.mark.parametrize("listed", [[], [("NVIDIA H100 PCIe", 80 * GIB, None)]])
def test_a_configuration_without_a_cluster_is_in_order(
    place: Path, driver: FakeDriver, listed: list[tuple[str, int, Facts | None]]
) -> None:
    list_gpus(driver, listed)
    path = place / "modelium.yaml"
    path.write_text("models: {llama-3.1-8b: {path: tiny, runtime: vllm}}")
    check, run_, emulated, _ = try_all(place, path)
    assert check == ""
    assert ("no NVIDIA GPU was found" in run_) == (not listed)
    assert "no NVIDIA GPU was found" in emulated  # what is pretended has to be named


@pytest.mark.parametrize("name", sorted(DRIVER_NAMES))
def test_a_server_starts_on_whatever_the_driver_lists(
    place: Path, driver: FakeDriver, name: str
) -> None:
    list_gpus(driver, 2 * [(name, gpu(name).memory_bytes, Facts("8.6", 320, 9501, 1710, 8704))])
    path = place / "modelium.yaml"
    path.write_text("models: {m: {catalogue: qwen2.5-0.5b, runtime: emulated}}")
    _, _, plan, notes = hardware(order(path))
    found = [gpu.kind for gpu in plan.hardware.gpus]
    assert len(found) == 2
    assert notes[0] == "2 GPUs found by NVML"
    assert [said for said in notes[1:] if "can sleep in it" not in said] == []
    assert not [finding for finding in diagnose(path) if finding.verdict == WRONG]
    spelled = kind_of(name)
    assert [
        gpu.kind for gpu in make_plan(on_fleet(read(path), f"2x{spelled}")).hardware.gpus
    ] == found
    assert found == [spelled, spelled]


def test_what_is_assumed_of_a_gpu_is_one_note_of_run_check_and_simulate(
    place: Path, driver: FakeDriver
) -> None:
    facts = Facts("8.6", 320, 9501, 1710, 8704)
    list_gpus(driver, 2 * [("NVIDIA GeForce RTX 3080", 10 * GIB, facts)])
    path = place / "modelium.yaml"
    path.write_text("models: {m: {catalogue: qwen2.5-0.5b, runtime: emulated}}")
    note = (
        "rtx-3080-10g is not in the catalogue: 760 GB/s by the driver;"
        " 60 TFLOPS by cores and clock (Ampere, 8.6);"
        " PCIe 32 GB/s assumed as for a10-24g (cluster.kinds says better)"
    )
    _, used, plan, notes = hardware(order(path))
    assert [said for said in notes if "catalogue" in said] == [note]
    assert [said.says for said in diagnose(path) if "catalogue" in said.says] == [note]
    assert plan.hardware.by_kind()["rtx-3080-10g"].bf16_flops == pytest.approx(59.5e12, rel=0.01)
    with_more = ServedModels(used, plan)  # it plans anew, and still knows what the driver told
    assert with_more.plan.hardware.by_kind() == plan.hardware.by_kind()
    other = place / "other.yaml"
    other.write_text("models: {llama-3.1-8b: qwen2.5-0.5b, chat: qwen2.5-0.5b}")
    simulated = prepare(Experiment(place / "trace.csv", other, gpus="2xrtx-3080-10g"))
    assert "rtx-3080-10g is not in the catalogue: 600 GB/s, 125 TFLOPS" in simulated.assumed[0]
    figures = "{bandwidth: 700GB/s, flops: 50e12, pcie: 16GB/s}"
    path.write_text(f"{path.read_text()}\ncluster: {{kinds: {{GeForce RTX 3080: {figures}}}}}")
    _, _, plan, notes = hardware(order(path))
    assert [said for said in notes if "can sleep in it" not in said] == ["2 GPUs found by NVML"]
    assert plan.hardware.by_kind()["rtx-3080-10g"].bandwidth_bytes_per_s == 700e9


def test_a_gpu_without_memory_of_its_own_has_the_machines(place: Path, driver: FakeDriver) -> None:
    list_gpus(driver, [("NVIDIA GB10", 0, Facts("12.1"))])
    path = place / "modelium.yaml"
    path.write_text("models: {m: {catalogue: qwen2.5-0.5b, runtime: emulated}}")
    _, _, plan, _ = hardware(order(path))
    [spec] = plan.hardware.by_kind().values()
    assert spec.memory_bytes == psutil.virtual_memory().total
    assert spec.bandwidth_bytes_per_s == 273e9


def test_what_does_not_fit_on_real_gpus_does_not_make_them_pretended(
    place: Path, driver: FakeDriver
) -> None:
    list_gpus(driver, [("NVIDIA L4", 24 * GIB, None)])
    path = place / "modelium.yaml"
    path.write_text("cluster: {gpus: 8xh100}\nmodels: {m: {catalogue: llama-3.1-70b}}")
    with pytest.raises(ConfigError, match=r"models\.m: llama-3\.1-70b needs .* a l4-24g has"):
        hardware(order(path))
    [wrong] = [finding for finding in diagnose(path) if finding.verdict == WRONG]
    assert "on the GPUs that are here: models.m: llama-3.1-70b needs" in wrong.says


@pytest.mark.parametrize("listed", [[], [("NVIDIA H100 PCIe", 80 * GIB, None)]])
def test_what_init_writes_and_the_docs_show_is_understood(
    place: Path, driver: FakeDriver, listed: list[tuple[str, int, Facts | None]]
) -> None:
    list_gpus(driver, listed)
    path = place / "modelium.yaml"
    path.write_text(TEMPLATE)
    assert try_all(place, path)[0] == ""
    docs = (page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)
    pages = [ROOT / "README.md", *docs, *(ROOT / "deploy").glob("*.md")]
    blocks = [
        block
        for page in pages
        for block in re.findall(
            r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S
        )
    ]
    assert len(blocks) > 15
    for block in blocks:
        path.write_text(block)
        check, *_ = try_all(place, path)
        known = r"is not a folder|no such file|cluster\.use: no GPU is called"
        assert not check or re.search(known, check), (block, check)


def test_analyze_takes_the_same_names(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["NVIDIA H100 PCIe", "h100-mig-1g.10gb", "rtx-3080-10g"]
    asked = [word for name in names for word in ("--gpu", name)]
    assert invoke(["analyze", str(place / "tiny"), "--json", *asked]) == 0
    sizes = json.loads(capsys.readouterr().out)["tensor_parallel"]
    assert sizes == {"h100-pcie-80g": [1, 2], "h100-80g-mig-1g.10gb": [1], "rtx-3080-10g": [1, 2]}
    assert invoke(["analyze", str(place / "tiny"), "--gpu", "h10"]) == 2
    [said] = capsys.readouterr().err.splitlines()
    assert "no GPU called 'h10' in the catalogue. Did you mean 'h100'? Another one needs" in said
    assert invoke(["analyze", str(place / "tiny")]) == 0
    assert "1, 2 " in capsys.readouterr().out
