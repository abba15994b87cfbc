"""Figures against plain arithmetic on the same rows, one request at a time."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelium.core import Decision, Gpu, Slo
from modelium.results.record import (
    OUTCOMES,
    SUMMARY_KEYS,
    decisions_table,
    requests_table,
    timeline_table,
)
from modelium.results.summary import DEFINITIONS, latencies, summarize

META = {"policy": "lru", "trace": "t.csv", "seed": 7}
KEYS = [
    "policy", "trace", "seed", "requests", "slo_attainment", "goodput_per_s", "ttft_s", "tpot_s",
    "e2e_s", "cold_starts", "loads", "unloads", "sleeps", "wakes", "gpu", "gpu_seconds", "fairness",
    "wall_s", "requests_per_wall_s", "decide_s", "versions",
]  # fmt: skip
NAN = math.nan


def request(model="a", arrival=0.0, first=NAN, finish=NAN, tokens=2, met=False, **more):
    done = "unfinished" if math.isnan(finish) else "completed"
    return {
        "arrival_s": arrival, "model": model, "prompt_tokens": 10, "output_tokens": tokens,
        "outcome": done, "instance": None, "first_token_s": first, "finish_s": finish, "cold": "",
        "preemptions": 0, "cached_tokens": 0, "retries": 0, "slo_met": met,
    } | more  # fmt: skip


def figures(rows, decisions=(), timeline=(), span_s=10.0, gpus=("g0",), slos=None, **meta):
    names = list(request())
    table = requests_table({name: [row[name] for row in rows] for name in names})
    return summarize(
        table,
        decisions_table(decisions),
        timeline_table(timeline),
        span_s=span_s,
        gpus=[Gpu(g, "n0", 100) for g in gpus],
        meta=META | meta,
        slos=slos,
    )


def decision(kind, at, model="a", error=""):
    return Decision(at, kind, model, f"{model}#0", ("g0",), "r", at + 1, error)


def test_every_promised_key_is_there_and_the_text_has_no_nan():
    summary = figures([request(), request(first=1.0, finish=2.0)])
    assert [key for key in summary if key in KEYS] == KEYS
    assert tuple(summary) == SUMMARY_KEYS
    assert "bounds" not in summary
    assert figures([], bounds={"slo_attainment": 0.9})["bounds"] == {"slo_attainment": 0.9}
    json.dumps(summary, allow_nan=False)


def test_nothing_happened_is_null_and_not_a_crash():
    summary = figures([], span_s=0.0, gpus=())
    json.dumps(summary, allow_nan=False)
    assert summary["slo_attainment"] is None
    assert summary["goodput_per_s"] is None
    assert summary["ttft_s"] == {"mean": None, "p50": None, "p90": None, "p99": None}
    assert summary["gpu"]["busy"] is None
    assert summary["fairness"] == {"jain": None, "worst_model": None}


def test_requests_that_were_not_completed_count_as_misses():
    rows = [request(first=1.0, finish=2.0, met=True)]
    rows += [request(outcome=outcome) for outcome in OUTCOMES if outcome != "completed"]
    summary = figures(rows)
    assert summary["slo_attainment"] == 0.2
    assert summary["goodput_per_s"] == 0.1
    assert summary["requests"] == {
        "arrived": 5, "completed": 1, "rejected": 1, "failed": 1, "unfinished": 1, "cancelled": 1,
    }  # fmt: skip


def test_tpot_is_undefined_for_one_token_and_for_answers_in_one_piece():
    rows = [
        request(first=1.0, finish=1.0, tokens=1),
        request(first=3.0, finish=3.0, tokens=40),
        request(first=1.0, finish=2.5, tokens=4),
    ]
    summary = figures(rows)
    assert summary["tpot_s"] == {"mean": 0.5, "p50": 0.5, "p90": 0.5, "p99": 0.5}
    assert summary["ttft_s"]["mean"] == pytest.approx(5 / 3)


times = st.floats(0, 100).map(lambda x: round(x, 3))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(times, times, times, st.integers(1, 50), st.booleans()), max_size=30))
def test_percentiles_and_means_equal_plain_arithmetic(raw):
    rows = [
        request("ab"[i % 2], a, a + t, a + t + d, n, met) for i, (a, t, d, n, met) in enumerate(raw)
    ]
    summary = figures(rows)
    ttft = sorted(r["first_token_s"] - r["arrival_s"] for r in rows)
    tpot = sorted(
        (r["finish_s"] - r["first_token_s"]) / (r["output_tokens"] - 1)
        for r in rows
        if r["output_tokens"] > 1 and r["finish_s"] > r["first_token_s"]
    )
    for values, got in ((ttft, summary["ttft_s"]), (tpot, summary["tpot_s"])):
        for q in (50, 90, 99):
            assert got[f"p{q}"] == (pytest.approx(linear(values, q)) if values else None)
        if values:
            assert got["mean"] == pytest.approx(sum(values) / len(values))
    for name, row in summary["per_model"].items():
        mine = [r for r in rows if r["model"] == name]
        assert row["requests"] == len(mine)
        assert row["slo_met"] == sum(r["slo_met"] for r in mine)
        mine_ttft = sorted(r["first_token_s"] - r["arrival_s"] for r in mine)
        assert row["ttft_p99_s"] == pytest.approx(linear(mine_ttft, 99))


def linear(values, q):
    at = (len(values) - 1) * q / 100
    low = math.floor(at)
    return values[low] + (at - low) * (values[min(low + 1, len(values) - 1)] - values[low])


def test_e2e_is_ttft_and_the_gaps():
    table = requests_table(
        {k: [v] for k, v in request(arrival=1.0, first=3.0, finish=9.0, tokens=5).items()}
    )
    felt = latencies(table)
    assert felt.e2e_s == pytest.approx(felt.ttft_s + 4 * felt.tpot_s)


def test_cold_starts_are_counted_by_tier():
    rows = [request(cold=tier) for tier in ("", "disk", "disk", "host", "sleep-1")]
    assert figures(rows)["cold_starts"] == {
        "requests": 4,
        "rate": 0.8,
        "by_tier": {"host": 1, "disk": 2, "sleep-1": 1, "sleep-2": 0},
        "triggers": 0,
    }


def test_triggers_are_loads_and_wakes_begun_while_a_request_of_that_model_waited():
    rows = [
        request("a", 1.0, first=5.0, finish=6.0, cold="disk"),
        request("b", 2.0, cold="disk"),
        request("a", 7.0, first=7.5, finish=8.0),
    ]
    log = [
        decision("load", 0.5, "a"),  # prefetch
        decision("load", 1.0, "a"),  # at the miss
        decision("load", 5.0, "a"),  # served by then
        decision("load", 7.0, "a"),  # that one did not wait
        decision("wake", 9.0, "b"),  # waits for ever
        decision("load", 9.0, "b", error="no room"),
        decision("unload", 3.0, "a"),
        decision("load", 3.0, "c"),  # nobody asked for it
    ]
    assert figures(rows, log)["cold_starts"]["triggers"] == 2


def test_actions_are_counted_and_failed_ones_apart():
    log = [decision(kind, 1.0) for kind in ("load", "load", "unload", "sleep", "wake", "move")]
    summary = figures([], [*log, decision("load", 2.0, error="refused")])
    counts = ("loads", "unloads", "sleeps", "wakes", "moves", "failed_actions")
    assert [summary[key] for key in counts] == [2, 1, 1, 1, 1, 1]


def test_gpu_shares_are_time_integrals_cut_at_the_span():
    timeline = [
        ("g0", 0.0, 2.0, "loading", "a", "a#0", 50.0),
        ("g0", 2.0, 12.0, "weights", "a", "a#0", 40.0),
        ("g0", 2.0, 12.0, "kv", "a", "a#0", 10.0),
        ("g0", 2.0, 12.0, "kv_used", "a", "", 5.0),
        ("g0", 0.0, 5.0, "busy", "", "", 0.5),
        ("g1", 5.0, 15.0, "busy", "", "", 1.0),
    ]
    gpu = figures([], timeline=timeline, gpus=("g0", "g1"))["gpu"]
    assert gpu["busy"] == pytest.approx((2.5 + 5.0) / 20)
    assert gpu["memory_weights"] == pytest.approx(40 * 8 / 2000)
    assert gpu["memory_kv"] == pytest.approx(10 * 8 / 2000)
    assert gpu["memory_kv_used"] == pytest.approx(5 * 8 / 2000)
    assert gpu["memory_other"] == pytest.approx(50 * 2 / 2000)
    parts = ("memory_weights", "memory_kv", "memory_other", "memory_free")
    assert sum(gpu[part] for part in parts) == pytest.approx(1.0)


def test_useful_is_the_busy_share_of_the_tokens_that_met_the_slo_gpu_by_gpu():
    timeline = [
        ("g0", 0.0, 10.0, "weights", "a", "a#0", 1.0),
        ("g1", 0.0, 10.0, "weights", "b", "b#0", 1.0),
        ("g0", 0.0, 10.0, "busy", "", "", 0.8),
        ("g1", 0.0, 10.0, "busy", "", "", 0.4),
    ]
    rows = [
        request("a", instance="a#0", tokens=20, met=True),
        request("a", instance="a#0", tokens=80),
        request("b", instance="b#0", met=True),
        request("b", met=False),  # reached no instance: cost no GPU time
    ]
    gpu = figures(rows, timeline=timeline, gpus=("g0", "g1"))["gpu"]
    assert gpu["useful"] == pytest.approx((0.8 * 30 / 120 + 0.4) / 2)


def test_fairness_is_jains_index_over_models_and_names_the_worst():
    rows = [request("a", met=True), request("b", met=True), request("b"), request("c")]
    fairness = figures(rows)["fairness"]
    assert fairness["jain"] == pytest.approx(1.5**2 / (3 * 1.25))
    assert fairness["worst_model"] == {"model": "c", "slo_attainment": 0.0}


def test_each_limit_alone_is_over_all_arrivals():
    rows = [
        request(first=1.0, finish=1.0, tokens=1),  # TPOT undefined: not broken
        request(first=3.0, finish=4.0, tokens=11),
        request(first=1.0, finish=NAN),
        request(),
    ]
    alone = figures(rows, slos={"a": Slo(ttft_s=2.0, tpot_s=0.05)})["slo_alone"]
    assert alone == {"ttft": 0.5, "tpot": 0.25, "e2e": 0.5}


def test_slos_are_said_with_the_number_of_models_that_have_them():
    rows = [request(m) for m in "abc"]
    slos = {"a": Slo(2.0), "b": Slo(1.0, 0.1), "c": Slo(2.0), "d": Slo()}
    assert figures(rows, slos=slos)["slos"] == [
        {"ttft_s": 2.0, "tpot_s": None, "e2e_s": None, "models": 2},
        {"ttft_s": 1.0, "tpot_s": 0.1, "e2e_s": None, "models": 1},
    ]


def test_without_slos_nothing_is_said_of_them():
    rows = [request()]
    assert figures(rows)["slos"] is None
    assert figures(rows)["slo_alone"] is None


def test_figures_do_not_depend_on_how_the_tables_were_chunked():
    import pyarrow as pa

    halves = [
        requests_table({k: [v] for k, v in request(m, first=1.0, finish=2.0, cold=c).items()})
        for m, c in (("b", "disk"), ("a", ""))
    ]
    table = pa.concat_tables(halves)
    rest = (decisions_table([]), timeline_table([]))
    summary = summarize(table, *rest, span_s=1.0, gpus=[], meta=META)
    assert {m: f["cold_starts"] for m, f in summary["per_model"].items()} == {"b": 1, "a": 0}


def test_every_figure_of_the_table_has_a_definition():
    assert {"TTFT", "TPOT", "E2E", "SLO attainment", "goodput", "cold start"} <= DEFINITIONS.keys()
    assert np.unique(list(DEFINITIONS.values())).size == len(DEFINITIONS)
