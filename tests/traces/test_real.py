"""The public traces themselves: rows and figures as published with them."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from modelium.traces import Drawn, describe, read_trace


def test_azure_llm_2023(real):
    code = describe(read_trace(real / "azure_llm_2023/AzureLLMInferenceTrace_code.csv"))
    assert code.requests == 8_819
    assert code.span_s == pytest.approx(3435.9, abs=0.1)
    assert code.cv == pytest.approx(13.15, abs=0.01)
    assert (code.prompt_tokens.mean, code.prompt_tokens.p50) == pytest.approx((2047.8, 1469), 1e-4)
    assert (code.prompt_tokens.p99, code.prompt_tokens.max) == (7436, 7437)
    conv = describe(read_trace(real / "azure_llm_2023/AzureLLMInferenceTrace_conv.csv"))
    assert conv.requests == 19_366
    assert conv.rate_per_s == pytest.approx(5.530, abs=0.001)
    assert conv.cv == pytest.approx(1.094, abs=0.001)
    assert (conv.output_tokens.mean, conv.output_tokens.p99) == pytest.approx((211.1, 601), 1e-3)


def test_arena_and_its_row_of_the_popularity_table(real):
    known = describe(read_trace(real / "arena27/real_trace.csv"))
    with (real / "popularity_table.csv").open() as file:
        row = next(r for r in csv.DictReader(file) if "Chatbot Arena" in r["trace"])
    assert (known.models, known.requests) == (int(row["n"]), int(row["requests"]))
    assert known.skew.top1 == pytest.approx(float(row["top1"]), abs=5e-4)
    assert known.skew.top10_percent == pytest.approx(float(row["top10pct"]), abs=5e-4)
    assert known.skew.top20_percent == pytest.approx(float(row["top20pct"]), abs=5e-4)
    assert known.skew.bottom50_percent == pytest.approx(float(row["bottom50pct"]), abs=5e-5)
    assert known.skew.zipf == pytest.approx(float(row["zipf_mle"]), abs=5e-3)
    assert known.cv == pytest.approx(1.10, abs=0.01)
    assert known.idle[10] == pytest.approx(0.81, abs=5e-3)
    assert known.idle[60] == pytest.approx(0.45, abs=5e-3)


def test_gentd26(real):
    trace = read_trace(real / "gentd26/lora_request_trace_nov.csv")
    assert len(trace) == 14_266  # 13 of 14,279 rows name no model
    assert len(trace.model.names) == 76
    assert trace.span_s == 1_320_314.0
    known = describe(trace)
    assert known.idle[600] == pytest.approx(0.987, abs=0.005)
    assert known.idle[3600] == pytest.approx(0.967, abs=0.005)


def test_azure_functions_samples(real):
    trace = read_trace(real / "azure_functions_samples/Azure2021_200.csv")
    assert (len(trace), len(trace.model.names)) == (199, 31)
    assert trace.span_s == pytest.approx(1200, abs=1)
    trace = read_trace(real / "azure_functions_samples/iluvatar_azure2019_trace.csv")
    assert (len(trace), len(trace.model.names)) == (11_868, 21)
    assert describe(trace).cv == pytest.approx(0.89, abs=0.01)


def test_servegen_rates(real):
    path = real / "servegen/rates_10min_m-small.csv.gz"
    with (real / "servegen/clients_summary.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["pool"] == "language/m-small"]
    trace = read_trace(path, scale=1e-3)
    assert len(trace.model.names) == len(rows)
    counts = dict(zip(trace.model.names, trace.model.counts().tolist(), strict=True))
    for row in rows:
        expected = 1e-3 * float(row["total_requests"])
        assert abs(counts[f"m-small-{row['client_id']}"] - expected) <= 4 * np.sqrt(expected) + 1


def test_vidur_lengths(real):
    path = real / "token_lengths/vidur_arxiv_summarization_stats_llama2.csv"
    known = describe(read_trace(path))
    assert known.requests == 28_257
    assert (known.prompt_tokens.mean, known.prompt_tokens.p50) == pytest.approx((2588, 2730), 1e-3)
    assert (known.output_tokens.mean, known.output_tokens.p99) == pytest.approx((291, 3271), 2e-3)
    drawn = Drawn.of(read_trace(path), str(path))
    prompt, _ = drawn.draw(20_000, 0, "m")
    error = drawn.prompt_tokens.std() / np.sqrt(20_000)
    assert abs(prompt.mean() - drawn.prompt_tokens.mean()) < 4 * error


def test_no_other_file_there_is_taken_for_a_trace(real):
    for name in ("README.md", "popularity_table.csv", "servegen/clients_summary.csv"):
        with pytest.raises(Exception, match="is of no trace format known here"):
            read_trace(real / name)


@pytest.mark.parametrize("kind", ["basemodel_update_latency_anon", "model_predict_data_anon"])
def test_tables_of_latencies_are_no_traces(real, kind):
    with pytest.raises(Exception, match="is of no trace format known here"):
        read_trace(real / f"gentd26/{kind}.tar.gz")
