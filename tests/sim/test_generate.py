"""The compiled engine equals the plain one to the bit, whatever happens to it."""

from __future__ import annotations

import numpy as np
import pytest
import reference_generate as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from modelium.errors import ConfigError
from modelium.sim.kernel import generate
from modelium.sim.spec import Generate, StepTime

PS = 1e-12
NEVER = reference.NEVER


def steps(coefficients, hinge=3):
    """Step times of a few picoseconds: iterations and events often fall on the same instant."""
    c = [x * PS for x in coefficients]
    return StepTime(
        decode_c=c[0] + PS, decode_lo=c[1], decode_hi=c[2], decode_hinge=hinge, decode_kv=c[3],
        mixed_c=c[4] + PS, mixed_lo=c[5], mixed_hi=c[6], mixed_hinge=2 * hinge, mixed_decode=c[7],
        mixed_prefill=c[8], mixed_kv=c[9], mixed_ctx=c[10], mixed_sq=c[11],
        decode_bends=((2, c[12]), (40, c[12])),
    )  # fmt: skip


@st.composite
def specs(draw):
    seqs = draw(st.integers(1, 6))
    block = draw(st.sampled_from([1, 3, 4, 16]))
    return Generate(
        step=steps(draw(st.lists(st.integers(0, 6), min_size=13, max_size=13))),
        kv_tokens=draw(st.integers(2, 40)) * block + draw(st.integers(0, block - 1)),
        max_num_seqs=seqs,
        max_batched_tokens=seqs + draw(st.integers(0, 40)),
        block_tokens=block,
        prefix_caching=draw(st.booleans()),
        watermark_blocks=draw(st.sampled_from([0, 0, 2])),
        max_model_len=draw(st.sampled_from([None, None, 20])),
    )


@st.composite
def workloads(draw):
    spec = draw(specs())
    most = max(1, spec.kv_tokens // 2)
    lengths = st.tuples(
        st.integers(1, most), st.integers(0, most),  # prompt, output
        st.integers(-1, 2), st.integers(0, most), st.integers(0, most),  # prefix, its tokens, hit
    )  # fmt: skip
    asked = draw(st.lists(lengths, min_size=1, max_size=14))
    span = draw(st.sampled_from([0, 200, 3000]))
    when = st.integers(0, span)
    events = [(draw(when), "put", r) for r in range(len(asked))]
    for kind, values in (
        ("slow", st.sampled_from([1024, 1500, 2048, 5000])),
        ("look", st.just(0)),
        ("drop", st.just(0)),
    ):
        most_events = 1 if kind == "drop" else 6
        events += draw(
            st.lists(st.tuples(when, st.just(kind), values), min_size=0, max_size=most_events)
        )
    return spec, asked, sorted(events, key=lambda event: event[0])


class Compiled:
    """The compiled engine with the reference's methods."""

    def __init__(self, spec, asked):
        columns = np.array(asked).T
        self.requests = generate.make_requests(
            columns[0], columns[1], None, columns[2], np.minimum(columns[3], columns[0]), columns[4]
        )
        # Slot 1 of 2 in row 1 of 2: indices are not mixed up.
        self.all = generate.make_engines(2, [Generate(spec.step, 64), spec], prefixes=len(asked))
        generate.start(self.all, 1, 1, spec.kv_tokens)
        self.engine = self.all.engines[1]
        self.scratch = np.zeros(64, np.int64)

    def fits(self, r):
        return generate.fits(self.all, self.requests, 1, r)

    def put(self, r, now):
        generate.put(self.all, self.requests, 1, r, now)

    def set_slow(self, now, factor):
        generate.set_slow(self.all, self.requests, 1, now, factor)

    def until(self, now):
        """Serve what is due before `now`; return who completed."""
        done = []
        while self.engine["due_ps"] < now:
            n = generate.step(self.all, self.requests, 1, self.scratch)
            done += self.scratch[:n].tolist()
        return done

    def drop(self):
        n = generate.drop(self.all, self.requests, 1, self.scratch)
        return self.scratch[:n].tolist()

    def look(self, now):
        e = self.engine
        return (
            int(e["running"]),
            int(e["waiting"]),
            generate.kv_tokens_now(self.all, self.requests, 1, now),
            generate.busy_ps_now(self.all, 1, now),
            int(e["owed_tokens"]) - generate.kv_tokens_now(self.all, self.requests, 1, now),
        )


class Plain:
    """The reference, with a trace."""

    def __init__(self, spec, asked):
        self.seqs = [
            reference.Sequence(r, prompt, output, prefix, min(tokens, prompt), hit)
            for r, (prompt, output, prefix, tokens, hit) in enumerate(asked)
        ]
        self.engine = reference.ReferenceEngine(spec)

    def put(self, r, now):
        self.engine.put(self.seqs[r], now)

    def set_slow(self, now, factor):
        self.engine.set_slow(factor)

    def until(self, now):
        done = []
        while self.engine.due_ps < now:
            done += [seq.id for seq in self.engine.step()]
        return done

    def drop(self):
        return [seq.id for seq in self.engine.drop()]

    def look(self, now):
        e = self.engine
        return (
            len(e.running),
            len(e.waiting),
            e.kv_tokens(),
            e.busy_ps_at(now),
            e.backlog_tokens(),
        )


@given(workloads())
@settings(max_examples=400, deadline=None)
def test_compiled_engine_equals_the_reference_to_the_bit(workload):
    spec, asked, events = workload
    ours, theirs = Compiled(spec, asked), Plain(spec, asked)
    ended, whole = [], True
    for now, kind, value in [*events, (NEVER, "end", 0)]:
        done = ours.until(now)
        assert done == theirs.until(now)
        ended += done
        if kind == "put" and ours.fits(value):
            ours.put(value, now)
            theirs.put(value, now)
        elif kind == "slow":
            ours.set_slow(now, value)
            theirs.set_slow(now, value)
        elif kind == "drop":
            whole = False
            lost = ours.drop()
            assert lost == theirs.drop()
            for r in lost:
                ours.put(r, now)
                theirs.put(r, now)
        elif kind == "look" and whole:
            assert ours.look(now) == theirs.look(now)
    served = [r for r in range(len(asked)) if ours.fits(r)]
    assert sorted(ended) == served
    columns = ours.requests
    for r in served:
        seq = theirs.seqs[r]
        assert columns.first_ps[r] == seq.first_ps
        assert columns.finish_ps[r] == seq.finish_ps
        gaps = np.diff(seq.token_ps)  # E2E = TTFT + (n - 1) TPOT, token by token
        assert len(gaps) == max(seq.output, 1) - 1
        assert columns.first_ps[r] + gaps.sum() == columns.finish_ps[r]
        assert columns.preemptions[r] == seq.preemptions
        assert columns.cached[r] == seq.cached
        assert columns.emitted[r] == max(seq.output, 1)
    e = ours.engine
    assert e["free_blocks"] == len(theirs.engine.free) == e["blocks"]
    assert (e["held_tokens"], e["owed_tokens"], e["queued_tokens"]) == (0, 0, 0)
    if whole:
        assert e["busy_ps"] == theirs.engine.busy_ps
        assert e["tokens"] == theirs.engine.tokens
        assert e["kv_token_ps"] == pytest.approx(theirs.engine.kv_token_ps, rel=1e-9)


LLAMA = StepTime(
    decode_c=10e-3, decode_lo=20e-6, decode_hi=90e-6, decode_hinge=64, decode_kv=300e-9,
    mixed_c=12e-3, mixed_lo=20e-6, mixed_hi=90e-6, mixed_hinge=64, mixed_decode=5e-6,
    mixed_prefill=1e-6, mixed_kv=400e-9, mixed_ctx=2e-9, mixed_sq=1e-9,
)  # fmt: skip


def test_one_request_alone_takes_what_the_formula_says():
    prompt, output = 1000, 50
    one = generate.run_engine(
        Generate(LLAMA, 4096, max_batched_tokens=600), [2.0], [prompt], [output]
    )
    chunks = [(600, 0), (400, 600)]
    ttft = sum(
        12e-3 + 64 * 20e-6 + (c - 64) * 90e-6 + 1e-6 + 2e-9 * c * x + 1e-9 * c * c
        for c, x in chunks
    )
    decode = sum(10e-3 + 20e-6 + 300e-9 * (prompt + k) for k in range(1, output))
    assert one.first_s[0] == pytest.approx(2.0 + ttft, abs=1e-11)
    assert one.finish_s[0] == pytest.approx(2.0 + ttft + decode, abs=1e-10)


def test_arrivals_need_no_order_and_what_never_fits_has_no_times():
    spec = Generate(LLAMA, 2048, max_num_seqs=4)
    arrival, prompt, output = np.array([3.0, 1.0, 2.0]), [500, 2040, 900], [20, 10, 1]
    mixed = generate.run_engine(spec, arrival, prompt, output)
    ordered = generate.run_engine(spec, arrival[[2, 0]], [900, 500], [1, 20])
    assert np.isnan(mixed.first_s[1])
    assert np.isnan(mixed.finish_s[1])
    np.testing.assert_array_equal(mixed.finish_s[[2, 0]], ordered.finish_s)
    assert mixed.first_s[2] == mixed.finish_s[2]


def turns(kv_tokens, others):
    """A conversation of two turns, with `others` requests of 1000 tokens in between."""
    arrival = [0.0, *(10.0 + 10 * k for k in range(others)), 1000.0]
    prompt = [400, *[1000] * others, 600]
    output = [100, *[1] * others, 1]
    prefix = [7, *range(100, 100 + others), 7]
    shared = [400, *[0] * others, 500]
    spec = Generate(LLAMA, kv_tokens)
    got = generate.run_engine(spec, arrival, prompt, output, prefix=prefix, prefix_tokens=shared)
    return int(got.cached[-1])


def test_the_next_turn_finds_the_full_blocks_of_the_last():
    assert turns(4096, others=0) == 496  # of 499 computed tokens, in blocks of 16
    assert turns(4096, others=3) == 496


def test_cached_blocks_are_reused_the_longest_unused_first_from_a_sequence_s_end():
    # 256 blocks: 32 hold the first turn (31 of them full), each other request takes 63. The fourth
    # finds 35 never used and takes 28 of the first turn's: the one that is not full, and 27.
    assert turns(4096, others=4) == 16 * (31 - 27)
    assert turns(4096, others=5) == 0


def test_a_preempted_request_finds_what_nobody_overwrote():
    spec = Generate(LLAMA, 64 * 16, max_num_seqs=2)
    asked = ([0.0, 0.001], [500, 480], [40, 40])
    with_cache = generate.run_engine(spec, *asked)
    without = generate.run_engine(
        Generate(LLAMA, 64 * 16, max_num_seqs=2, prefix_caching=False), *asked
    )
    assert with_cache.preemptions.tolist() == without.preemptions.tolist() == [0, 1]
    assert with_cache.finish_s[1] < without.finish_s[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs: 0"),
        ({"max_batched_tokens": 100}, "max_batched_tokens: 100: must be at least max_num_seqs"),
        ({"block_tokens": 0}, "block_tokens: 0"),
        ({"kv_tokens": -5}, "kv_tokens: -5"),
    ],
)
def test_limits_that_no_engine_can_keep_are_named(changes, words):
    given_spec = {"step": LLAMA, "kv_tokens": 4096, **changes}
    with pytest.raises(ConfigError, match=words):
        generate.make_engines(1, [Generate(**given_spec)])


def test_prediction_is_exact_for_an_idle_engine_but_for_what_grows_with_context():
    spec = Generate(LLAMA, 4096)
    alone = generate.run_engine(spec, [0.0], [300], [20])
    columns = generate.make_requests(np.array([300]), np.array([20]))
    engines = generate.make_engines(1, [spec])
    generate.start(engines, 0, 0, spec.kv_tokens)
    first_s, last_s = generate.predict(engines, columns, 0, 0, 0.0)
    assert first_s == pytest.approx(alone.first_s[0], rel=0.01)
    assert last_s == pytest.approx(alone.finish_s[0], rel=0.01)
