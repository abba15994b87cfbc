"""What deploy/ says must be true of Modelium: series, options, paths."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelium.cli.live.run import run as run_command
from tests.live.running import WITHIN_S, until
from tests.metrics.test_exporter import everything, samples

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
GET_IT = "no Prometheus here: apt-get install -y --no-install-recommends prometheus"
needs_prometheus = pytest.mark.skipif(not shutil.which("prometheus"), reason=GET_IT)
needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason=GET_IT)


def panels() -> list[dict[str, Any]]:
    board = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries() -> dict[str, str]:
    """Queries of the dashboard by where they stand."""
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in panels()
        for target in panel["targets"]
    }


def rules() -> dict[str, str]:
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def test_queries_and_alerts_name_series_and_labels_that_exist() -> None:
    labels: dict[str, set[str]] = {}
    for name, given in samples(everything()):
        labels.setdefault(name, {"instance", "job"}).update(label for label, _ in given)
    for where, query in {**queries(), **rules()}.items():
        named = re.findall(r"(modelium_\w+)(?:\{([^}]*)\})?", query)
        assert named or query.startswith("up{"), where
        for name, selector in named:
            assert name in labels, f"{where}: no series {name}"
            for label in re.findall(r"(\w+)\s*[!=]~?", selector):
                assert label in labels[name], f"{where}: {name} has no label {label}"
        known = set().union(*(labels[name] for name, _ in named)) | {"instance", "job"}
        for group in re.findall(r"(?:by|on) \(([^)]*)\)", query):
            assert {label.strip() for label in group.split(",")} <= known, where


def test_every_series_is_on_the_dashboard() -> None:
    shown = " ".join(queries().values())
    kinds = re.compile(r"_(bucket|sum|count|created)$")
    names = {kinds.sub("", name) for name, _ in samples(everything())}
    hidden = {name for name in names if name.startswith("modelium_") and name not in shown}
    assert hidden == set()


def test_panels_do_not_overlap_and_say_what_they_show() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["fieldConfig"]["defaults"]["unit"]
    assert len({panel["id"] for panel in panels()}) == len(panels())


@needs_promtool
@pytest.mark.parametrize(
    "command",
    ["check config prometheus.yml", "check rules alerts.yml", "test rules alerts_test.yml"],
)
def test_promtool_agrees(command: str) -> None:
    ended = subprocess.run(
        ["promtool", *command.split()], cwd=DEPLOY, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_every_alert_is_seen_to_fire_and_not_to_fire() -> None:
    tests = yaml.safe_load((DEPLOY / "alerts_test.yml").read_text())["tests"]
    tried = [case for test in tests for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in tried if case.get("exp_alerts")} == set(rules())
    assert {case["alertname"] for case in tried if not case.get("exp_alerts")} == set(rules())


# A real Prometheus


LISTENS = r'"Listening on".* address=\S+:(\d+)'


class Prometheus:
    """A server that scrapes one target every second."""

    def __init__(self, folder: Path, target: int) -> None:
        config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{target}"]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        shutil.copy(DEPLOY / "alerts.yml", folder)
        self.log = (folder / "log").open("w")
        command = ["prometheus", f"--config.file={folder}/prometheus.yml"]
        command += [f"--storage.tsdb.path={folder}/data"]
        command += ["--web.listen-address=127.0.0.1:0"]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        self.port = 0

    def began(self) -> None:
        """Wait for its address, which its log tells, and until it answers there."""
        log = Path(self.log.name)

        def listens() -> re.Match[str] | None:
            assert self.process.poll() is None, log.read_text()
            return re.search(LISTENS, log.read_text())

        self.port = int(until(listens)[1])
        until(self.ready)

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready") as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError:  # it listens before it answers
            return False

    def ask(self, path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=WITHIN_S) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{query}: {error.read().decode()}") from error

    def until(self, query: str, least: int) -> None:
        """Wait until a query gives some results."""
        until(lambda: len(self.ask("query", query=query)["result"]) >= least)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.log.close()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has scraped a server that counted up meanwhile."""
    metrics = everything()
    server = Prometheus(tmp_path_factory.mktemp("prometheus"), metrics.start_server(port=0))
    try:
        server.began()
        server.until("modelium_requests_total", 1)
        metrics.record_request(
            "gpt2", "vllm", 90, "success", 0, ttft_s=0.1, tpot_s=0.02, wait_s=0.1, cold="disk",
            prompt_tokens=1, output_tokens=1,
        )  # fmt: skip
        metrics.record_model_load("vllm", "success", {"process": 1.0})
        metrics.record_model_wake("vllm", {"wake": 1.0})
        metrics.record_decide("miss", 0.001)
        server.until("rate(modelium_decide_seconds_count[1m]) > 0", 1)
        yield server
    finally:
        server.close()
        metrics.stop_server()


@needs_prometheus
def test_it_is_scraped(prometheus: Prometheus) -> None:
    (target,) = prometheus.ask("targets")["activeTargets"]
    assert (target["health"], target["labels"]["job"]) == ("up", "modelium")
    (result,) = prometheus.ask("query", query="modelium_gpu_memory_used_gb")["result"]
    assert (result["metric"]["gpu"], result["value"][1]) == ("0", "15.2")


@needs_prometheus
@pytest.mark.parametrize("where", queries())
def test_every_query_of_the_dashboard_has_an_answer(prometheus: Prometheus, where: str) -> None:
    query = queries()[where].replace("$__rate_interval", "1m")
    for variable in ("$instance", "$model"):
        query = query.replace(variable, ".*")
    assert prometheus.ask("query", query=query)["result"], where


@needs_prometheus
@pytest.mark.parametrize("alert", rules())
def test_every_alert_can_be_evaluated(prometheus: Prometheus, alert: str) -> None:
    prometheus.until("ALERTS or vector(1)", 1)
    found = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    health = {rule["name"]: rule["health"] for rule in found}
    assert health[alert] in ("ok", "unknown")
    prometheus.ask("query", query=rules()[alert])


# systemd, Docker


def test_the_unit_starts_a_command_that_exists_and_lets_engines_live() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "modelium.service")
    service = unit["Service"]
    program, command, *options = shlex.split(service["ExecStart"])
    assert (Path(program).name, command) == ("modelium", "run")
    known = {name for option in run_command.params for name in option.opts}
    assert {option for option in options if option.startswith("--")} <= known
    assert service["KillMode"] == "process"
    assert service["ExecReload"].endswith("kill -HUP $MAINPID")
    assert "PrivateTmp" not in service
    assert service["RestartPreventExitStatus"] == "2"


def test_the_image_is_made_from_what_is_there() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', text)
    assert all(f"\n{extra} = [" in project for extra in extras.split(","))
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}:" in makefile for target in re.findall(r"engines-\w+", text))
    known = {name for option in run_command.params for name in option.opts}
    (words,) = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    assert {word for word in json.loads(words) if word.startswith("--")} <= known


def test_compose_mounts_files_that_are_there() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert services["modelium"]["pid"] == services["modelium"]["network_mode"] == "host"
    mounts = [mount for service in services.values() for mount in service["volumes"]]
    ours = {mount.split(":")[0] for mount in mounts if mount.startswith("./")}
    assert {path for path in ours if not (DEPLOY / path).exists()} == {"./modelium.yaml"}
    command = services["prometheus"]["command"]
    (address,) = [word.split("=")[1] for word in command if "listen-address" in word]
    source = DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    assert yaml.safe_load(source.read_text())["datasources"][0]["url"] == f"http://{address}"
