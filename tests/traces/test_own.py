"""Modelium's own format: what is written is read again, what is wrong is named."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelium.errors import TraceError
from modelium.traces import Labels, Trace, read_trace, write_trace

ENDINGS = ("csv", "csv.gz", "parquet")
HEADER = "arrival_s,model,prompt_tokens,output_tokens\n"
GOOD = HEADER + "0.5,a,10,1\n1.5,b,20,2\n2.5,a,30,3\n"


def write(folder: Path, text: str | bytes, name: str = "prod.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def complaint(path: Path, **options: object) -> str:
    with pytest.raises(TraceError) as caught:
        read_trace(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_column_survives_writing_and_reading(tmp_path, three, columns, ending):
    path = tmp_path / f"t.{ending}"
    write_trace(three, path)
    assert columns(read_trace(path)) == columns(three)


@st.composite
def traces(draw):
    n = draw(st.integers(1, 30))
    name = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1)
    tokens = st.lists(st.integers(0, 2**31 - 1), min_size=n, max_size=n)
    times = st.lists(st.floats(0, 1e9), min_size=n, max_size=n)
    maybe = st.none() | st.lists(st.none() | name, min_size=n, max_size=n)
    sessions = draw(maybe)
    return Trace(
        np.array(sorted(draw(times)), np.float64) + 0.0,
        Labels.of(draw(st.lists(name, min_size=n, max_size=n))),
        np.array(draw(tokens), np.int32),
        np.array(draw(tokens), np.int32),
        session=None if sessions is None else Labels.of(sessions),
    )


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(trace=traces(), ending=st.sampled_from(ENDINGS))
def test_any_trace_survives_writing_and_reading(tmp_path, columns, trace, ending):
    path = tmp_path / f"t.{ending}"
    write_trace(trace, path)
    assert columns(read_trace(path)) == columns(trace)


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_same_trace_gives_the_same_bytes(tmp_path, three, ending):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_trace(three, tmp_path / folder / f"t.{ending}")
    first, second = ((tmp_path / f / f"t.{ending}").read_bytes() for f in ("one", "two"))
    assert first == second


def test_the_format_is_told_from_content_not_from_the_name(tmp_path, three, columns):
    for ending in ENDINGS:
        write_trace(three, tmp_path / f"t.{ending}")
        path = (tmp_path / f"t.{ending}").rename(tmp_path / f"named-{ending[:3]}.dat")
        assert columns(read_trace(path)) == columns(three)


def test_text_where_a_number_belongs_is_named_with_file_and_row(tmp_path):
    rows = "".join(f"{i},m,1,1\n" for i in range(60_000))
    wrong = rows.replace("48112,m,1,1", "48112,m,12a,1")
    path = write(tmp_path, HEADER + wrong)
    assert complaint(path) == (
        f"{path}, row 48,113: prompt_tokens is '12a', expected a whole number >= 0"
    )


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("1.5,b,-20,2", "prompt_tokens is '-20', expected a whole number >= 0"),
        ("1.5,b,20.5,2", "prompt_tokens is '20.5', expected a whole number >= 0"),
        ("1.5,b,20,", "output_tokens is missing, expected a whole number >= 0"),
        ("1.5,b,20,99999999999", "output_tokens is '99999999999', expected a whole number >= 0"),
        ("NaN,b,20,2", "arrival_s is 'NaN', expected a number of seconds >= 0"),
        ("inf,b,20,2", "arrival_s is 'inf', expected a number of seconds >= 0"),
        ("-1,b,20,2", "arrival_s is '-1', expected a number of seconds >= 0"),
        ("soon,b,20,2", "arrival_s is 'soon', expected a number of seconds >= 0"),
        ("1.5,b,2_0,2", "prompt_tokens is '2_0', expected a whole number >= 0"),
        ("1.5,,20,2", "model is missing, expected the name of a model"),
        ('1.5,"",20,2', "model is missing, expected the name of a model"),
        ("1.5,b,20", "has 3 columns, expected 4"),
        ("1.5,b,20,2,9", "has 5 columns, expected 4"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_wrong_cell_is_named_with_its_row(tmp_path, row, expected, packed):
    text = GOOD.replace("1.5,b,20,2", row).encode()
    path = write(tmp_path, gzip.compress(text) if packed else text)
    assert complaint(path) == f"{path}, row 2: {expected}"


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("prompt_tokens", ["1", "x"], "prompt_tokens is 'x', expected a whole number >= 0"),
        ("prompt_tokens", [1, -2], "prompt_tokens is -2, expected a whole number >= 0"),
        ("prompt_tokens", [1, None], "prompt_tokens is missing, expected a whole number >= 0"),
        ("arrival_s", [0.0, float("nan")], "arrival_s is nan, expected a number of seconds >= 0"),
        ("model", ["a", None], "model is missing, expected the name of a model"),
    ],
)
def test_a_wrong_parquet_cell_is_named_with_its_row(tmp_path, name, values, expected):
    table = {"arrival_s": [0.0, 1.0], "model": ["a", "a"], "prompt_tokens": [1, 1]}
    table = {**table, "output_tokens": [1, 1], name: values}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    path = tmp_path / "t.parquet"
    assert complaint(path) == f"{path}, row 2: {expected}"


def test_other_parquet_types_are_read_if_their_values_fit(tmp_path):
    table = pa.table(
        {
            "arrival_s": pa.array([0, 2], pa.int64()),
            "model": pa.array(["a", "b"], pa.large_string()),
            "prompt_tokens": pa.array([1.0, 2.0]),
            "output_tokens": pa.array(["3", "4"]),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    trace = read_trace(tmp_path / "t.parquet")
    assert trace.prompt_tokens.tolist() == [1, 2]
    assert trace.output_tokens.tolist() == [3, 4]


def test_a_wrong_cell_of_a_mile_still_fits_on_a_line(tmp_path):
    path = write(tmp_path, GOOD.replace("1.5,b,20,2", "1.5,b," + "z" * 5000 + ",2"))
    assert len(complaint(path).removeprefix(str(path))) < 150


def test_text_that_is_not_utf_8_is_named(tmp_path):
    path = write(tmp_path, GOOD.encode().replace(b"1.5,b", b"1.5,caf\xe9"))
    assert "row 2: model is 'caf\ufffd'" in complaint(path)


def test_a_missing_column_is_named_with_the_nearest(tmp_path):
    path = write(tmp_path, GOOD.replace("prompt_tokens", "prompt_token"))
    assert "has no column 'prompt_tokens'. Is it 'prompt_token'?" in complaint(path)


def test_a_column_that_is_there_twice_is_an_error(tmp_path):
    path = write(tmp_path, GOOD.replace("output_tokens", "prompt_tokens") + "")
    text = GOOD.replace("output_tokens\n", "output_tokens,model\n").replace("\n", ",z\n", 9)
    path = write(tmp_path, text.replace("model,z", "model"))
    assert "more than one column 'model'" in complaint(path)


def test_without_a_model_column_the_model_must_be_named(tmp_path):
    text = "arrival_s,prompt_tokens,output_tokens\n0,1,1\n"
    path = write(tmp_path, text)
    assert "--model NAME" in complaint(path)
    assert read_trace(path, model="phi-4").model.values() == ["phi-4"]


def test_unsorted_rows_are_sorted_and_that_is_said_once(tmp_path):
    path = write(tmp_path, HEADER + "3,c,1,1\n1,a,2,2\n2,b,3,3\n1,d,4,4\n")
    trace = read_trace(path)
    assert trace.arrival_s.tolist() == [1, 1, 2, 3]
    assert trace.model.values() == ["a", "d", "b", "c"]  # equal times keep the file's order
    assert trace.prompt_tokens.tolist() == [2, 4, 3, 1]
    assert trace.notes == (f"{path} was not in order of arrival (first at row 2): sorted",)


def test_a_sorted_file_is_not_remarked_upon(tmp_path):
    assert read_trace(write(tmp_path, GOOD)).notes == ()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (gzip.compress(b"", mtime=0), "is empty"),
        (HEADER.encode(), "holds no requests, only a header"),
        (HEADER.encode().rstrip(), "holds no requests, only a header"),
        (b"\n\n", "is of no trace format known here"),
        (b"hello\nworld\n", "is of no trace format known here"),
        (b"\x80\x04\x95", "is a Python pickle"),
        (b"PAR1 but then nothing", "is damaged Parquet"),
        (gzip.compress(GOOD.encode() * 1000, mtime=0)[:40], "is cut short"),
        (b"\x1f\x8b\x08\x00 not gzip at all", "gzip"),
    ],
)
def test_a_file_without_a_trace_is_refused_in_one_line(tmp_path, content, expected):
    assert expected in complaint(write(tmp_path, content))


def test_a_gzip_file_cut_short_late_is_noticed(tmp_path):
    rng = np.random.default_rng(0)
    rows = "".join(f"{i},m,{rng.integers(1e6)},1\n" for i in range(50_000))
    whole = gzip.compress((HEADER + rows).encode())
    assert "is cut short" in complaint(write(tmp_path, whole[:-2000], "t.csv.gz"))


def test_parquet_cut_short_is_refused(tmp_path, three):
    write_trace(three, tmp_path / "t.parquet")
    whole = (tmp_path / "t.parquet").read_bytes()
    assert "is damaged Parquet" in complaint(write(tmp_path, whole[:-50], "cut.parquet"))


def test_empty_parquet_is_refused(tmp_path):
    empty = {"arrival_s": [], "model": [], "prompt_tokens": [], "output_tokens": []}
    pq.write_table(pa.table(empty), tmp_path / "t.parquet")
    assert "holds no requests" in complaint(tmp_path / "t.parquet")


def test_a_file_that_is_not_there_is_named(tmp_path):
    assert complaint(tmp_path / "none.csv") == f"{tmp_path}/none.csv does not exist"


def test_a_name_too_long_for_a_file_is_not_there(tmp_path):
    assert complaint(tmp_path / ("x" * 300)).endswith("does not exist")


def test_a_folder_without_a_pool_is_refused(tmp_path):
    assert "is a folder, expected a file or ServeGen's chunks" in complaint(tmp_path)


def test_the_list_of_known_formats_is_in_the_message(tmp_path):
    message = complaint(write(tmp_path, "x,y\n1,2\n"))
    assert "begins with 'x,y'" in message
    for name in ("Azure LLM", "BurstGPT", "Mooncake", "ServeGen", "GenTD26", "Modelium"):
        assert name in message


def test_windows_files_are_read(tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert read_trace(path).model.values() == ["a", "b", "a"]


def test_other_columns_are_ignored(tmp_path):
    text = re.sub(r"(?m)$", ",zzz", GOOD.rstrip()).replace("output_tokens,zzz", "output_tokens,e")
    assert len(read_trace(write(tmp_path, text))) == 3


def test_only_known_endings_are_written(tmp_path, three):
    with pytest.raises(TraceError, match=r"written as \.csv, \.csv\.gz or \.parquet"):
        write_trace(three, tmp_path / "t.xlsx")
    assert list(tmp_path.iterdir()) == []


def test_nothing_half_written_is_left(tmp_path, three):
    broken = Trace(three.arrival_s[:2], three.model, three.prompt_tokens, three.output_tokens)
    with pytest.raises(ValueError, match="zip"):
        write_trace(broken, tmp_path / "t.csv")
    assert list(tmp_path.iterdir()) == []


def test_writing_into_no_folder_is_a_plain_error(tmp_path, three):
    with pytest.raises(TraceError, match="cannot be written"):
        write_trace(three, tmp_path / "none" / "t.csv")
