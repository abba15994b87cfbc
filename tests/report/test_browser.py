"""The page in a real browser: nothing overlaps or overflows, and its controls do what they say."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from modelium.results.report import build

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine")
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--dump-dom",
    "--virtual-time-budget=5000",
    "--window-size=1400,1200",
]
EVIL = "</script><img src=x onerror=window.hacked=true>"
NAMES = [
    EVIL,
    "a&b <i>",
    "line\u2028end",
    *(f"model-{i}-with-a-rather-long-name" for i in range(9)),
]


@pytest.fixture(scope="module")
def page(fabricate):
    runs = [("lru", fabricate(names=NAMES, n_models=12, n_gpus=2, n=20_000))]
    runs.append((EVIL, fabricate("ilp", n_models=14, n_gpus=10, n=5_000, assumptions=[EVIL])))
    return build(runs)


@pytest.fixture(scope="module", params=[400, 1280])
def seen(request, page, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    script = (Path(__file__).parent / "probe.js").read_text(encoding="utf-8")
    early = "<script>window.errors=[];onerror=(text)=>{errors.push(text)}</script>"
    probed = page.replace("<head>", f"<head>{early}", 1)
    probed = probed.replace("</body>", f"<script>{script}</script></body>")
    (folder / "report.html").write_text(probed, encoding="utf-8")
    frame = f"border:0;width:{request.param}px;height:1000px"
    (folder / "frame.html").write_text(
        f'<iframe src="report.html" style="{frame}"></iframe>'
        "<script>onmessage = ({data}) => { document.body.textContent = data }</script>"
    )
    command = [
        CHROMIUM,
        *OPTIONS,
        f"--user-data-dir={folder}/profile",
        f"file://{folder}/frame.html",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    body = re.search(r"<body>(.*)</body>", done.stdout, re.DOTALL)[1]
    return json.loads(html.unescape(body))


def test_it_runs_without_errors_and_draws_everything(seen):
    assert seen["errors"] == []
    assert seen["pictures"] >= 5


def test_the_page_does_not_scroll_sideways_and_no_words_overlap(seen):
    assert seen["overflow"] <= 0
    assert seen["overlaps"] == []


def test_names_from_the_data_are_text_and_nothing_else(seen):
    assert not seen["hacked"]
    assert EVIL in seen["models"]
    assert "a&b <i>" in seen["models"]


def test_the_filter_keeps_rows_with_all_its_words(seen):
    assert 0 < len(seen["filtered"]) < seen["allRows"]
    assert all("wake" in row and "gpu1" in row for row in seen["filtered"])
    assert seen["count"].startswith(f"{len(seen['filtered']):,} of ")
    assert seen["moreRows"] > seen["allRows"]


def test_a_click_on_a_head_sorts_and_a_second_one_turns_it_round(seen):
    assert seen["down"] == sorted(seen["down"], reverse=True)
    assert seen["up"] == sorted(seen["up"])
    assert seen["down"] != seen["up"]


def test_a_decision_jumps_to_its_moment_in_every_picture_over_time(seen):
    assert seen["hiddenCursors"] == seen["cursors"] == 3
    assert seen["moment"].startswith("at ")
    assert seen["chosen"] == 1


def test_another_run_can_be_chosen(seen):
    assert seen["changed"]
