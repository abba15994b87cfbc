"""One picture of a trace: load over time, popularity, when models are asked for, lengths."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from modelium.errors import TraceError
from modelium.traces.info import Info, describe, per_model
from modelium.traces.trace import Trace
from modelium.units import counted, format_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"
"""Of Okabe and Ito's palette, which colour-blind people can tell apart."""
BINS = 288
SHOWN_MODELS = 25


def draw_trace(trace: Trace, path: str | Path) -> None:
    """Draw a trace into a PNG, SVG or PDF file. Raises TraceError where that cannot be written."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    known = describe(trace)
    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
        _load(axes[0, 0], trace)
        _popularity(axes[0, 1], trace, known)
        _who_when(axes[1, 0], trace)
        _token_cdf(axes[1, 1], trace)
        figure.suptitle(
            f"{Path(trace.source).name}: {counted(known.requests, 'request')}, "
            f"{counted(known.models, 'model')}, "
            f"{format_seconds(known.span_s)}"
        )
        try:
            figure.savefig(path, dpi=130)
        except (OSError, ValueError) as error:
            raise TraceError(f"{path} cannot be drawn: {error}") from error
        finally:
            plt.close(figure)


def _clock(trace: Trace) -> tuple[float, float, str]:
    """The length of the time axis in seconds, and the seconds and name of a fitting unit."""
    span_s = trace.span_s or 1.0
    for size, name in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if span_s >= 3 * size:
            return span_s, size, name
    return span_s, 1.0, "s"


def _load(ax: Axes, trace: Trace) -> None:
    span_s, size, unit = _clock(trace)
    counts, edges = np.histogram(trace.arrival_s, BINS, (0.0, span_s))
    ax.stairs(counts / np.diff(edges), edges / size, fill=True, color=BLUE)
    ax.set(title="Load", xlabel=f"time ({unit})", ylabel="requests per second", ylim=(0, None))
    ax.set_xlim(0, span_s / size)


def _popularity(ax: Axes, trace: Trace, known: Info) -> None:
    share = np.sort(trace.model.counts())[::-1] / len(trace)
    rank = np.arange(1, len(share) + 1)
    ax.loglog(rank, share, "o", color=BLUE, markersize=4, label="trace")
    if known.skew.zipf is not None:
        law = rank**-known.skew.zipf
        ax.loglog(rank, law / law.sum(), color=ORANGE, label=f"Zipf, s = {known.skew.zipf:.2f}")
    ax.set(title="Popularity", xlabel="rank of model", ylabel="share of requests (%)")
    ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.legend(frameon=False)


def _who_when(ax: Axes, trace: Trace) -> None:
    span_s, size, unit = _clock(trace)
    own = per_model(trace)
    busiest = sorted(range(len(own)), key=lambda i: -len(own[i]))[:SHOWN_MODELS]
    for row, i in enumerate(busiest):
        # One tick a bin: a busy model is a solid line, an idle one shows its gaps.
        bins = np.unique((own[i] / span_s * 4 * BINS).astype(np.int64))
        at = (bins + 0.5) * span_s / (4 * BINS) / size
        ax.plot(at, np.full(len(at), row), "|", color=BLUE, markersize=5, markeredgewidth=0.6)
    ax.set_yticks(range(len(busiest)), [_short(trace.model.names[i]) for i in busiest])
    ax.tick_params(axis="y", labelsize=7)
    ax.invert_yaxis()
    more = f" (busiest {SHOWN_MODELS} of {len(own)})" if len(own) > SHOWN_MODELS else ""
    ax.set(title=f"Requests over time{more}", xlabel=f"time ({unit})")
    ax.set_xlim(0, span_s / size)


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:21] + "..."


def _token_cdf(ax: Axes, trace: Trace) -> None:
    percent = np.linspace(0.0, 100.0, 401)
    for name, tokens, colour, line in (
        ("prompt", trace.prompt_tokens, BLUE, "-"),
        ("output", trace.output_tokens, ORANGE, "--"),
    ):
        ax.plot(
            np.maximum(np.percentile(tokens, percent), 1), percent, line, color=colour, label=name
        )
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    ax.set(title="Lengths", xlabel="tokens", ylabel="requests up to this length (%)", ylim=(0, 100))
    ax.legend(frameon=False)
