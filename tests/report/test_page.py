"""The page as text: self-contained, escaped, complete and small; its bins against plain sums."""

import json
import re
import sys
from collections import Counter

import numpy as np
import pytest

from modelium.core import Decision
from modelium.results.record import Run, decisions_table, floats, requests_table, timeline_table
from modelium.results.report import bins, build
from modelium.results.summary import DEFINITIONS, latencies, summarize
from modelium.units import GIB


@pytest.fixture(scope="module")
def run(fabricate):
    return fabricate(assumptions=["the <moon> is full"], command="modelium simulate --x")


@pytest.fixture(scope="module")
def page(run):
    return build([("lru", run)])


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_a_day_of_60000_requests_is_under_2_mb_and_no_work_is_done_for_each(run, page):
    calls = Counter()

    def count(frame, event, function):
        if event in ("call", "c_call"):
            calls[frame.f_code if event == "call" else function.__qualname__] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        build([("lru", run)])
    finally:
        sys.setprofile(before)
    assert max(calls.values()) < 30_000  # 12,000, however many requests there are
    assert len(page.encode()) < 2_000_000


def test_nothing_is_fetched_from_anywhere(page):
    assert re.findall(r'(?:src|href)="(?!data:)[^"]*"', page) == []
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", page) == []
    assert "@import" not in page


def test_the_same_runs_give_the_same_page(run, page):
    assert build([("lru", run)]) == page


def test_everything_that_was_run_and_assumed_is_said(page):
    for text in ("modelium simulate --x", "the &lt;moon&gt; is full", "4 × h100-80g", "60,000"):
        assert text in page
    for word in DEFINITIONS:
        assert f"<dt>{word}</dt>" in page


def test_texts_from_the_data_cannot_leave_their_place(fabricate):
    evil = "</script><!--<script>alert(1)</script>"
    run = fabricate(evil, n=300, n_models=2, names=[evil, "b"], assumptions=[evil])
    page = build([(evil, run)])
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert "<!--" not in page
    assert data_of(page)["runs"][0]["name"] == evil


def test_the_answer_names_the_best_run_and_the_bound(fabricate):
    lru, ilp = (
        fabricate(n=3000),
        fabricate("ilp", n=3000, n_gpus=8, bounds={"slo_attainment": 0.99}),
    )
    page = build([("lru", lru), ("ilp", ilp)])
    share = f"{100 * ilp.summary['slo_attainment']:.1f}\u00a0%"
    assert ilp.summary["slo_attainment"] > lru.summary["slo_attainment"]
    assert f"ilp met the SLO for {share}" in page
    assert "No policy can exceed 99.0\u00a0%" in page


def test_an_empty_run_has_a_report(run):
    tables = (run.requests.slice(0, 0), decisions_table([]), timeline_table([]))
    meta = {"policy": "lru", "trace": "none", "seed": 0}
    empty = Run(summarize(*tables, span_s=0.0, gpus=[], meta=meta), *tables)
    assert "No request arrived" in build([("lru", empty)])


def test_steps_of_memory_hold_exactly_the_byte_seconds_of_the_table(run):
    (panel, *_) = bins.gpus(run, bins.largest_models([run]), 200)
    edges = np.array(panel["edges"])
    drawn = sum(np.array(band["gib"]) @ np.diff(edges) for band in panel["bands"])
    kinds = ("weights", "kv", "overhead", "loading", "asleep", "leaving")
    held = sum(
        row["value"] * (row["end_s"] - row["start_s"]) / GIB
        for row in run.timeline.to_pylist()
        if row["gpu"] == "gpu0" and row["kind"] in kinds
    )
    assert drawn == pytest.approx(held, rel=1e-3)


def test_few_changes_are_drawn_where_they_happened(run):
    rows = [("gpu0", 10.0, 20.0, "weights", "a", "a#0", 3 * GIB)]
    few = Run(run.summary, run.requests, run.decisions, timeline_table(rows))
    panel = bins.gpus(few, ["a"], 200)[0]
    assert panel["edges"][:3] == [0, 10, 20]
    assert panel["bands"] == [{"colour": 0, "state": 0, "gib": [0, 3, 0]}]


def test_a_cdf_is_the_share_of_all_arrivals_and_has_few_points(run):
    felt = latencies(run.requests)
    curve = bins.cdf(felt.ttft_s, run.requests.num_rows)
    assert len(curve["x"]) <= 400
    assert curve["p"][-1] == pytest.approx(np.mean(~np.isnan(felt.ttft_s)), abs=1e-6)
    for x, p in zip(curve["x"], curve["p"], strict=True):
        assert p == pytest.approx(np.mean(felt.ttft_s <= x), abs=0.01)


def test_long_logs_keep_every_failure_and_say_how_many_there_were(run):
    rows = [Decision(float(i), "load", "a", "a#0", ("g",), "r", error="x" * (i % 100 == 7))
            for i in range(3000)]  # fmt: skip
    long = Run(run.summary, run.requests, decisions_table(rows), run.timeline)
    log = bins.log(long, 200)
    assert log["of"] == 3000
    assert len(log["rows"]) <= 200
    assert sum(row[6] != "" for row in log["rows"]) == 30
    assert [row[0] for row in log["rows"]] == sorted(row[0] for row in log["rows"])
    assert len(bins.log(long, 3000)["rows"]) == 3000


def test_gantt_bars_cover_the_intervals_and_waiting_is_from_arrival_to_first_token(run):
    rows = [
        ("gpu0", 0.0, 10.0, "loading", "a", "a#0", 1.0),
        ("gpu1", 0.0, 10.0, "loading", "a", "a#0", 1.0),
        ("gpu0", 10.0, 500.0, "weights", "a", "a#0", 1.0),
        ("gpu0", 1000.0, 2000.0, "asleep", "a", "a#0", 1.0),
    ]
    request = {
        "arrival_s": [0.0, 3000.0], "model": ["a", "a"], "prompt_tokens": [1, 1],
        "output_tokens": [1, 1], "outcome": ["completed", "unfinished"], "instance": ["a#0", None],
        "first_token_s": [11.0, np.nan], "finish_s": [11.0, np.nan], "cold": ["disk", ""],
        "preemptions": [0, 0], "cached_tokens": [0, 0], "retries": [0, 0], "slo_met": [True, False],
    }  # fmt: skip
    small = Run({"span_s": 4000.0}, requests_table(request), run.decisions, timeline_table(rows))
    (row,) = bins.residency(small, ["a"], 10)["rows"]
    assert row["bars"] == [[10, 500], [0, 10], [1000, 2000]]
    assert row["waits"] == [0, 11, 3000, 4000]
    assert sum(row["arrivals"]) == 2


def test_percentiles_over_time_are_those_of_each_bin(run):
    over_time = bins.felt(run)["over_time"]
    n, end = len(over_time["p50"]), bins.end_s(run)
    arrival, ttft = floats(run.requests, "arrival_s"), latencies(run.requests).ttft_s
    for k in (0, n // 2):
        mine = (arrival >= k * end / n) & (arrival < (k + 1) * end / n) & ~np.isnan(ttft)
        expected = np.percentile(ttft[mine], 99) if mine.any() else None
        assert over_time["p99"][k] == pytest.approx(expected, rel=0.01)
