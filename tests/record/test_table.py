import io
import re

from rich.console import Console

from modelium.results.table import cells, names, print_table


def summary(policy, slo=0.9, ttft=0.2, loads=1, bound=None, **more):
    return {
        "policy": policy,
        "policy_parameters": {},
        "trace": "t",
        "seed": 0,
        "slo_attainment": slo,
        "goodput_per_s": 1.0,
        "ttft_s": {"p50": ttft, "p99": 3.0},
        "cold_starts": {"rate": 0.01},
        "loads": loads,
        "gpu": {"busy": 0.5},
        **({"bounds": {"slo_attainment": bound}} if bound else {}),
    } | more


def printed(summaries, **options):
    out = io.StringIO()
    print_table(summaries, Console(file=out, width=100, **options))
    return out.getvalue()


def test_decimal_points_stand_in_one_column_and_lines_fit_100():
    lines = printed([summary("a", ttft=t) for t in (0.213, 11.94, 1234.5, None)]).splitlines()
    assert max(map(len, lines)) <= 100
    at = lines[0].index("TTFT p50")
    texts = [line[at : at + 8] for line in lines[2:]]
    assert [text.strip() for text in texts] == ["0.21", "11.9", "1,234", "-"]
    assert texts[0].index(".") == texts[1].index(".") == len(texts[2].rstrip())


def test_on_a_narrow_terminal_nothing_is_cut_but_follows_below():
    runs = [summary("lru", bound=0.99), summary("a-policy-of-a-long-name", bound=0.99)]
    whole, narrow = cells(runs), io.StringIO()
    print_table(runs, Console(file=narrow, width=40))
    text = narrow.getvalue()
    assert max(map(len, text.splitlines())) <= 40
    assert "…" not in text
    for column in whole:
        assert text.count(column.head) == 1
    assert text.count("lru") == text.count("\n\n") + 1 > 2


def test_the_best_value_is_marked_in_its_own_direction():
    table = {c.head: c for c in cells([summary("a", 0.9, 0.2), summary("b", 0.8, 0.1)])}
    assert table["SLO met"].best == (True, False)
    assert table["TTFT p50"].best == (False, True)
    assert table["loads"].best == (False, False)
    assert table["goodput"].best == (False, False)  # all equal: nobody is best
    near = [summary("a", 0.90001), summary("b", 0.90002), summary("c", 0.8)]
    assert cells(near)[0].best == (True, True, False)  # what prints alike is equally good
    text = printed([summary("a"), summary("b", 0.8)], force_terminal=True)
    assert re.search(r"\x1b\[1m *90\.0", text)
    assert not re.search(r"\x1b\[1m *80\.0", text)


def test_the_distance_to_the_bound_shows_only_where_there_is_a_bound():
    assert "gap to bound" not in printed([summary("a")])
    text = printed([summary("a", 0.9, bound=0.99), summary("b", 0.99)])
    assert "gap to bound" in text
    assert "9.1" in text


def test_runs_are_told_apart_by_what_differs_among_namesakes():
    runs = [
        summary("lru"),
        summary("ttl", policy_parameters={"idle_s": 5, "n": 1}),
        summary("ttl", policy_parameters={"idle_s": 9, "n": 1}),
        summary("gdsf", seed=1),
        summary("gdsf", seed=2),
    ]
    assert names(runs) == ["lru", "ttl idle_s=5", "ttl idle_s=9", "gdsf seed 1", "gdsf seed 2"]


def test_markup_in_a_name_is_printed_as_it_is():
    assert "[red]" in printed([summary("[red]")])
