"""ServeGen's pools of clients: rates by window, densities of lengths, in folders or archives."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from modelium.errors import TraceError
from modelium.traces import read_trace

SERVEGEN = "0,0.0,0.0,,,\n600,2.5,1.5,Gamma,0.4444,0.9\n1200,5.0,2.0,Weibull,0.54,0.1\n"


def complaint(path: Path) -> str:
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    return str(caught.value)


def archive(folder: Path, files: dict[str, str], name: str = "pool.tar.gz") -> Path:
    path = folder / name
    with tarfile.open(path, "w:gz") as tar:
        for member, text in files.items():
            info = tarfile.TarInfo(member)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


DATASET = json.dumps(
    {
        "0": {"input_tokens": "{100: 0.25, 200: 0.75}", "output_tokens": "{7: 2.0}"},
        "21600": {"input_tokens": "{}", "output_tokens": "{}"},
        "43200": {"input_tokens": "{200: 1.0}", "output_tokens": "{7: 1.0}"},
    }
)


def test_servegen_windows_become_renewals_of_their_rate(tmp_path):
    busy = "".join(f"{600 * w},2.5,1.5,{('Gamma', 'Weibull')[w % 2]},,\n" for w in range(40))
    path = archive(tmp_path, {"data/language/m-x/chunk-3-trace.csv": SERVEGEN + "", "x/README": ""})
    trace = read_trace(path)
    assert trace.model.names == ("m-x-3",)
    assert trace.arrival_s.min() >= 600.0
    assert trace.arrival_s.max() < 1800.0
    path = archive(tmp_path, {"m-y/chunk-0-trace.csv": busy})
    counts = np.histogram(read_trace(path).arrival_s, 40, (0, 24_000))[0]
    sd = np.sqrt(2.5 * 600 * 1.5**2)  # of a renewal process's count
    assert abs(counts.mean() - 1500) < 4 * sd / np.sqrt(40)
    assert sd * 0.6 < counts.std() < sd * 1.5


def test_servegen_scales_rates_before_drawing(tmp_path):
    busy = "".join(f"{600 * w},250,1.5,Gamma,,\n" for w in range(40))
    trace = read_trace(archive(tmp_path, {"m/chunk-0-trace.csv": busy}), scale=0.01)
    assert abs(len(trace) - 60_000) < 4 * np.sqrt(60_000 * 1.5**2)


def test_servegen_lengths_come_from_the_densities_beside_the_rates(tmp_path):
    files = {
        "m/chunk-0-trace.csv": SERVEGEN,
        "m/chunk-1-trace.csv": SERVEGEN,
        "m/chunk-0-dataset.json": DATASET,
    }
    trace = read_trace(archive(tmp_path, files))
    assert set(trace.prompt_tokens.tolist()) == {100, 200}
    assert set(trace.output_tokens.tolist()) == {7}
    share = float(np.mean(trace.prompt_tokens == 100))
    assert abs(share - 0.125) < 4 * np.sqrt(0.125 * 0.875 / len(trace))  # mean of two windows
    assert any("densities of 1 clients" in note for note in trace.notes)


def test_servegen_as_a_folder_is_the_same_as_an_archive(tmp_path):
    files = {"m/chunk-0-trace.csv": SERVEGEN, "m/chunk-0-dataset.json": DATASET}
    (tmp_path / "m").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    folder, tar = read_trace(tmp_path / "m"), read_trace(archive(tmp_path, files))
    assert folder.arrival_s.tolist() == tar.arrival_s.tolist()
    assert folder.prompt_tokens.tolist() == tar.prompt_tokens.tolist()


def test_servegen_densities_alone_are_a_list_of_lengths(tmp_path):
    trace = read_trace(archive(tmp_path, {"m/chunk-0-dataset.json": DATASET}))
    assert len(trace) == 10_000
    assert any("lengths only: Poisson" in note for note in trace.notes)


def test_a_density_that_is_code_is_not_run(tmp_path):
    mark = tmp_path / "mark"
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    text = json.dumps({"0": {"input_tokens": code, "output_tokens": "{}"}})
    path = archive(tmp_path, {"m/chunk-0-dataset.json": text})
    assert "is not a density" in complaint(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("2.5,1.5", "fast,1.5"), "row 2: rate is 'fast'"),
        (("Gamma", "Gama"), "row 2: family is 'Gama', expected 'Gamma', 'Weibull' or nothing"),
        (("600,2.5,1.5", "600,2.5,x"), "row 2: cv is 'x'"),
        ((",1.5,Gamma,0.4444,0.9", ""), "row 2: has 2 columns, expected 6"),
    ],
)
def test_servegen_names_a_wrong_cell(tmp_path, change, expected):
    path = archive(tmp_path, {"m/chunk-0-trace.csv": SERVEGEN.replace(*change)})
    message = complaint(path)
    assert message.startswith(f"{path}:m/chunk-0-trace.csv, ")
    assert expected in message


def test_a_servegen_archive_cut_short_is_refused(tmp_path):
    path = archive(tmp_path, {"m/chunk-0-trace.csv": SERVEGEN * 500})
    path.write_bytes(path.read_bytes()[:-60])
    assert "is cut short" in complaint(path)
