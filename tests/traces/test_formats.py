"""Every public format on small hand-written files: told by content, read by its stated rule."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from modelium.errors import TraceError
from modelium.traces import Lognormal, read_trace
from modelium.traces.formats.mooncake import prefixes
from modelium.traces.read import format_of


def write(folder: Path, text: str, name: str = "log.dat") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def complaint(path: Path, **options: object) -> str:
    with pytest.raises(TraceError) as caught:
        read_trace(path, **options)
    return str(caught.value)


AZURE_2023 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319600,3180,8\n"
)
AZURE_2024 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:01+00:00,2399,6\n"
)
MINUTES = ",".join(str(m) for m in range(1, 1441))
ZEROS = ",".join("0" * 1438)
AZURE_2019 = (
    f"HashOwner,HashApp,HashFunction,Trigger,{MINUTES}\n"
    f"{'0' * 64},{'a' * 64},{'b' * 64},http,3,0,{ZEROS}\n"
    f"{'1' * 64},{'c' * 64},{'b' * 64},timer,0,500,{ZEROS}\n"
)
AZURE_2021 = "app,func,end_timestamp,duration\nx,f,5.0,1.5\nx,g,1.0,1.25\ny,f,3.0,1.0\n"
ILUVATAR = "func_name,invoke_time_ms\nf,1500\ng,250\n"
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,0,1087,API log\n"
)
BURSTGPT_2 = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,s1,1.5,ChatGPT,472,18,490,Conversation log\n"
)
MOONCAKE = (
    '{"timestamp": 0, "input_length": 1100, "output_length": 52, "hash_ids": [0, 1, 2]}\n'
    '{"timestamp": 500, "input_length": 1800, "output_length": 7, "hash_ids": [0, 1, 2, 3]}\n'
    '{"timestamp": 250, "input_length": 300, "output_length": 9, "hash_ids": [9]}\n'
)
GENTD26 = (
    "gmt_create,predict_type,predict_status,exec_time_seconds,groupId,prompt_length,"
    "negative_prompt_length,num_images_per_prompt,num_inference_steps,"
    "checkpoint_model_version_id,num_lora\n"
    "2024-11-15 16:57:50,TXT_2_IMG,SUCCEED,32.0,G0,63.0,26.0,1.0,30.0,M0,0\n"
    "2024-11-15 16:58:50,TXT_2_IMG,FAILED,,G1,,,,,,0\n"
    "2024-11-15 17:57:50,IMG_2_IMG,SUCCEED,32.0,G1,63.0,,4.0,25.0,M1,0\n"
)
ARENA = "req_id,model,req_time_s,prompt_len,output_len\n0,m-13,0.0,13,199\n1,m-2,0.25,36,137\n"
VIDUR = "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n3772,54,3826,69.8\n"
VLLM = '{"date": "x", "input_lens": [3, 4], "output_lens": [5, 6], "start_times": [12.5, 12.0]}'
SHAREGPT = json.dumps(
    [
        {"id": "a", "conversations": [{"from": "human", "value": "x" * 9}, {"value": "y" * 4}]},
        {"id": "b", "conversations": [{"from": "human", "value": "alone"}]},
    ]
)
RATES = ",0,7\n0,0.5,0.0\n600,0.0,1.0\n"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (AZURE_2023, "Azure LLM 2023/2024"),
        (AZURE_2024, "Azure LLM 2023/2024"),
        (AZURE_2019, "Azure Functions 2019"),
        (AZURE_2021, "Azure Functions 2021"),
        (ILUVATAR, "Iluvatar"),
        (BURSTGPT, "BurstGPT"),
        (BURSTGPT_2, "BurstGPT"),
        (MOONCAKE, "Mooncake"),
        (GENTD26, "GenTD26"),
        (ARENA, "Chatbot Arena sample"),
        (VIDUR, "Vidur"),
        (VLLM, "ShareGPT or vLLM lengths"),
        (SHAREGPT, "ShareGPT or vLLM lengths"),
        (RATES, "ServeGen table of rates"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_formats_are_told_by_content(tmp_path, text, name, packed):
    path = tmp_path / "log.dat"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    assert format_of(path).name == name
    assert len(read_trace(path)) > 0


def test_azure_llm_2023_counts_seconds_from_its_first_request(tmp_path):
    trace = read_trace(write(tmp_path, AZURE_2023, "code.csv"))
    assert trace.arrival_s.tolist() == [0.0, 0.052]
    assert trace.prompt_tokens.tolist() == [4808, 3180]
    assert trace.output_tokens.tolist() == [10, 8]
    assert trace.model.values() == ["code", "code"]


def test_azure_llm_2024_has_a_zone_and_fractions_of_any_length(tmp_path):
    trace = read_trace(write(tmp_path, AZURE_2024), model="chat")
    assert trace.arrival_s.tolist() == pytest.approx([0.0, 0.99007])
    assert trace.model.names == ("chat",)


def test_azure_llm_mixed_clocks_are_read_too(tmp_path):
    text = AZURE_2023 + "2023-11-16 18:17:05.9799600+00:00,1,2\n"
    assert read_trace(write(tmp_path, text)).arrival_s.tolist() == pytest.approx([0, 0.052, 2.0])


def test_a_wrong_clock_is_named(tmp_path):
    path = write(tmp_path, AZURE_2023 + "yesterday,1,2\n")
    assert complaint(path).startswith(f"{path}, row 3: TIMESTAMP is 'yesterday', expected a time")


def test_azure_functions_2019_spreads_counts_within_their_minutes(tmp_path):
    path = write(tmp_path, AZURE_2019)
    trace = read_trace(path, seed=3)
    first, second = "a" * 12 + "/" + "b" * 12, "c" * 12 + "/" + "b" * 12
    assert dict(zip(trace.model.names, trace.model.counts().tolist(), strict=True)) == {
        first: 3,
        second: 500,
    }
    minute = (trace.arrival_s // 60).astype(int)
    assert sorted(set(zip(trace.model.values(), minute.tolist(), strict=True))) == [
        (first, 0),
        (second, 1),
    ]
    within = trace.arrival_s[minute == 1] - 60.0
    assert abs(within.mean() - 30.0) < 4 * 60 / np.sqrt(12 * 500)  # uniform
    assert trace.organization is not None
    assert trace.organization.names == ("0" * 12, "1" * 12)
    assert read_trace(path, seed=3).arrival_s.tolist() == trace.arrival_s.tolist()
    assert read_trace(path, seed=4).arrival_s.tolist() != trace.arrival_s.tolist()
    assert any("uniform within each minute (seed 3)" in note for note in trace.notes)


def test_azure_functions_2019_can_be_thinned_while_read(tmp_path):
    text = AZURE_2019.replace(",500,", ",100000,")
    kept = read_trace(write(tmp_path, text), scale=0.1).model.counts().sum()
    assert abs(kept - 10_000) < 4 * np.sqrt(100_000 * 0.1 * 0.9)


def test_a_file_that_stands_for_too_many_requests_says_how_to_scale_it(tmp_path):
    message = complaint(write(tmp_path, AZURE_2019.replace(",500,", ",900000000,")))
    assert "900,000,003 requests" in message
    assert "--scale 0.001" in message


def test_azure_functions_2021_arrive_at_their_end_less_their_duration(tmp_path):
    trace = read_trace(write(tmp_path, AZURE_2021))
    # g began before the log did: the trace starts there.
    assert trace.arrival_s.tolist() == [0.0, 2.25, 3.75]
    assert trace.model.values() == ["x/g", "y/f", "x/f"]


def test_iluvatar_is_in_milliseconds(tmp_path):
    trace = read_trace(write(tmp_path, ILUVATAR))
    assert trace.arrival_s.tolist() == [0.25, 1.5]
    assert trace.model.values() == ["g", "f"]


def test_made_up_lengths_are_said_seeded_and_replaceable(tmp_path):
    path = write(tmp_path, ILUVATAR)
    usual, again = read_trace(path, seed=1), read_trace(path, seed=1)
    assert usual.prompt_tokens.tolist() == again.prompt_tokens.tolist()
    assert any("lognormal, prompt mean 700" in note for note in usual.notes)
    tiny = read_trace(path, lengths=Lognormal(prompt_limit=1, output_limit=2))
    assert tiny.prompt_tokens.tolist() == [1, 1]


def test_burstgpt_keeps_failed_calls_and_says_so(tmp_path):
    trace = read_trace(write(tmp_path, BURSTGPT))
    assert trace.model.values() == ["ChatGPT", "GPT-4"]
    assert trace.prompt_tokens.tolist() == [472, 1087]
    assert trace.output_tokens.tolist() == [18, 0]
    assert trace.slo_class is not None
    assert trace.slo_class.values() == ["Conversation log", "API log"]
    assert any("1 failed calls" in note for note in trace.notes)
    newer = read_trace(write(tmp_path, BURSTGPT_2))
    assert newer.session is not None
    assert newer.session.values() == ["s1"]


def test_mooncake_shares_blocks_as_prefixes(tmp_path):
    trace = read_trace(write(tmp_path, MOONCAKE, "conversation.jsonl"))
    assert trace.arrival_s.tolist() == [0.0, 0.25, 0.5]
    assert trace.prompt_tokens.tolist() == [1100, 300, 1800]
    assert trace.prefix_id is not None
    assert trace.prefix_id.values() == ["p0", None, "p0"]
    assert trace.prefix_tokens is not None
    assert trace.prefix_tokens.tolist() == [1100, 0, 1536]  # 3 blocks, at most the prompt
    assert trace.model.names == ("conversation",)


def test_a_short_common_preamble_does_not_join_conversations():
    chains = [[0, 1, 2, 3], [0, 4, 5, 6], [0, 1, 2, 3, 7], [0, 4, 5, 6, 8], [99]]
    labels, shared = prefixes(chains)
    assert labels.values() == ["p0", "p1", "p0", "p1", None]
    assert shared.tolist() == [4, 4, 4, 4, 0]


def test_no_request_can_hit_more_than_it_shares_with_an_earlier_one():
    rng = np.random.default_rng(1)
    chains: list[list[int]] = []
    fresh = iter(range(100_000))
    for _ in range(400):  # a random tree of prefixes
        base = chains[rng.integers(len(chains))] if chains and rng.uniform() < 0.8 else []
        cut = int(rng.integers(0, len(base) + 1))
        chains.append(base[:cut] + [next(fresh) for _ in range(rng.integers(1, 5))])
    labels, shared = prefixes(chains)
    groups = labels.values()
    for r, chain in enumerate(chains):
        same = [c for i, c in enumerate(chains) if i != r and groups[i] == groups[r]]
        common = [sum(a == b for a, b in zip(chain, c, strict=False)) for c in same]
        assert shared[r] <= (max(common) if groups[r] is not None else 0)
    assert sum(group is not None for group in groups) > 200


def test_mooncake_names_a_wrong_row(tmp_path):
    path = write(tmp_path, MOONCAKE.replace('"input_length": 1800', '"input_length": "x"'))
    assert complaint(path).startswith(f"{path}, row 2: input_length is 'x', expected a whole")
    path = write(tmp_path, MOONCAKE + "{broken\n")
    assert f"{path}, row 4: not JSON" in complaint(path)
    path = write(tmp_path, MOONCAKE.replace("[9]", '"nine"'))
    assert "row 3: hash_ids is 'nine', expected a list" in complaint(path)


def test_gentd26_counts_work_in_denoising_steps(tmp_path):
    trace = read_trace(write(tmp_path, GENTD26))
    assert trace.arrival_s.tolist() == [0.0, 3600.0]
    assert trace.model.values() == ["M0", "M1"]
    assert trace.prompt_tokens.tolist() == [30, 100]
    assert trace.output_tokens.tolist() == [1, 1]
    assert trace.organization is not None
    assert trace.organization.values() == ["G0", "G1"]
    assert any("1 rows name no model" in note for note in trace.notes)


def test_arena_is_read_as_it_is(tmp_path):
    trace = read_trace(write(tmp_path, ARENA))
    assert trace.arrival_s.tolist() == [0.0, 0.25]
    assert trace.model.values() == ["m-13", "m-2"]
    assert (trace.prompt_tokens.tolist(), trace.output_tokens.tolist()) == ([13, 36], [199, 137])


def test_lengths_alone_arrive_as_poisson_at_one_a_second(tmp_path):
    text = VIDUR.splitlines()[0] + "\n" + "7,8,15,1\n" * 4000
    trace = read_trace(write(tmp_path, text, "arxiv.csv"), seed=1)
    assert trace.model.names == ("arxiv",)
    assert set(trace.prompt_tokens.tolist()) == {7}
    gaps = np.diff(trace.arrival_s, prepend=0.0)
    assert abs(gaps.mean() - 1.0) < 4 / np.sqrt(4000)
    assert any("no times: Poisson at 1/s (seed 1)" in note for note in trace.notes)


def test_vidur_with_times_keeps_them(tmp_path):
    text = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,1,2\n0.75,3,4\n"
    assert read_trace(write(tmp_path, text)).arrival_s.tolist() == [0.5, 0.75]


def test_a_benchmark_result_with_start_times_keeps_them(tmp_path):
    trace = read_trace(write(tmp_path, VLLM))
    assert trace.arrival_s.tolist() == [0.0, 0.5]
    assert trace.prompt_tokens.tolist() == [4, 3]
    assert trace.output_tokens.tolist() == [6, 5]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (('"output_lens": [5, 6]', '"output_lens": [5]'), "2 input_lens and 1 output_lens"),
        (('"output_lens": [5, 6]', '"output_lens": 5'), "output_lens is 5, expected a list"),
        (("[3, 4]", "[3, -4]"), "row 2: input_lens is -4"),
        (("[12.5, 12.0]", "[12.5]"), "2 input_lens and 1 start_times"),
        (('"start_times"', "start_times"), "is not JSON"),
    ],
)
def test_a_wrong_benchmark_result_is_refused(tmp_path, change, expected):
    assert expected in complaint(write(tmp_path, VLLM.replace(*change)))


def test_a_log_of_json_lines_is_read(tmp_path):
    rows = [{"arrival_time": 1.7e9 + t, "input_toks": t, "output_toks": 2} for t in (3, 1, 2)]
    trace = read_trace(write(tmp_path, "\n".join(json.dumps(row) for row in rows)))
    assert trace.arrival_s.tolist() == [0.0, 1.0, 2.0]
    assert trace.prompt_tokens.tolist() == [1, 2, 3]


def test_sharegpt_estimates_tokens_from_characters(tmp_path):
    trace = read_trace(write(tmp_path, SHAREGPT))
    assert (trace.prompt_tokens.tolist(), trace.output_tokens.tolist()) == ([3], [1])
    assert any("characters / 4" in note for note in trace.notes)
    assert any("1 conversations without an answer" in note for note in trace.notes)


def test_json_of_another_kind_is_no_trace(tmp_path):
    assert "no trace format" in complaint(write(tmp_path, '{"a": 1}'))


def test_a_table_of_rates_is_poisson_in_each_window(tmp_path):
    trace = read_trace(write(tmp_path, RATES, "rates_10min_m-x.csv"), seed=2)
    assert trace.model.names == ("m-x-0", "m-x-7")
    first = trace.arrival_s[trace.model.codes == 0]
    assert first.max() < 600.0
    assert abs(len(first) - 300) < 4 * np.sqrt(300)


@pytest.mark.parametrize("scale", [0.0, -1.0, 1.5])
def test_a_scale_that_is_no_share_is_refused(tmp_path, scale):
    assert "expected a share" in complaint(write(tmp_path, ARENA), scale=scale)


def test_thinning_a_log_keeps_each_request_with_that_chance(tmp_path):
    text = ARENA + "2,m-2,0.5,1,1\n" * 20_000
    kept = len(read_trace(write(tmp_path, text), scale=0.3))
    assert abs(kept - 0.3 * 20_002) < 4 * np.sqrt(20_002 * 0.3 * 0.7)
