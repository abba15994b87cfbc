"""docs/architecture.svg: what talks to what, in simulation and live."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 920, 560
STYLE = """\
text { font: 14px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1c2733 }
.title { font-weight: 600 } .small { font-size: 12.5px; fill: #4a5866 }
.shared { fill: #e8f1fb; stroke: #2f6fb0 } .sim { fill: #eef7ee; stroke: #3c8a4a }
.live { fill: #fdf1e6; stroke: #b8702a } .plain { fill: #f5f6f8; stroke: #8a96a3 }
rect { stroke-width: 1.3 } path { fill: none; stroke: #4a5866; stroke-width: 1.5 }
.head { fill: #4a5866; stroke: none }
"""
BOXES = (
    # x, y, width, height, class, title, lines
    (
        330,
        20,
        260,
        76,
        "shared",
        "Policy",
        ["decide(state, event) → actions", "lru, gdsf, ilp, … or yours"],
    ),
    (
        330,
        176,
        260,
        112,
        "shared",
        "Shared by both clusters",
        [
            "state, rules, costs, memory ledger",
            "policy channel, decision log",
            "router, queue limits, SLOs",
        ],
    ),
    (
        20,
        176,
        240,
        112,
        "sim",
        "Simulated cluster",
        [
            "SimPy: loads, links, faults, ticks",
            "compiled kernels: arrivals,",
            "routing, batches, tokens",
        ],
    ),
    (
        660,
        176,
        240,
        112,
        "live",
        "Live cluster",
        [
            "one asyncio loop owns the state",
            "request queues, slots, recovery",
            "journal on disk (SQLite)",
        ],
    ),
    (20, 20, 240, 76, "plain", "Request trace", ["your own CSV or Parquet,", "or a public format"]),
    (
        660,
        20,
        240,
        76,
        "live",
        "Gateway",
        ["OpenAI, KServe v2, /predict", "keys, limits, fair queues"],
    ),
    (
        660,
        362,
        240,
        76,
        "live",
        "Managers",
        ["start, sleep, wake, stop engines", "one for each runtime"],
    ),
    (
        20,
        362,
        240,
        76,
        "sim",
        "Hardware and models",
        ["catalogue, fitted step times,", "or your own measurements"],
    ),
    (660, 480, 240, 60, "plain", "Engines", ["vLLM · Triton · Ray Serve · emulated"]),
    (
        330,
        362,
        260,
        76,
        "shared",
        "Results",
        ["requests, decisions, timeline", "summary and report: same for both"],
    ),
)
ARROWS = (
    # points; the last one gets the head
    ((140, 96), (140, 176)),
    ((780, 96), (780, 176)),
    ((780, 288), (780, 362)),
    ((780, 438), (780, 480)),
    ((140, 362), (140, 288)),
    ((260, 232), (330, 232)),
    ((660, 232), (590, 232)),
    ((440, 176), (440, 96)),
    ((480, 96), (480, 176)),
    ((220, 288), (220, 325), (400, 325), (400, 362)),
    ((700, 288), (700, 325), (520, 325), (520, 362)),
)
LABELS = ((430, 140, "end", "events"), (490, 140, "start", "actions"), (790, 50, "", ""))


def picture() -> str:
    """The whole picture as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        ' aria-label="Policy, simulated cluster, live cluster and what they share">\n',
        f"<style>\n{STYLE}</style>\n",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#fff" stroke="none"/>\n',
        *(_arrow(points) for points in ARROWS),
        *(_box(*box) for box in BOXES),
        *(
            f'<text class="small" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>\n'
            for x, y, anchor, text in LABELS
            if text
        ),
        "</svg>\n",
    ]
    return "".join(parts)


def _box(
    x: int, y: int, width: int, height: int, kind: str, title: str, lines: Sequence[str]
) -> str:
    middle = x + width // 2
    rows = [f'<text class="title" x="{middle}" y="{y + 24}" text-anchor="middle">{title}</text>\n']
    rows += [
        f'<text class="small" x="{middle}" y="{y + 46 + 19 * k}" text-anchor="middle">'
        f"{escape(line)}</text>\n"
        for k, line in enumerate(lines)
    ]
    frame = f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="7"/>\n'
    return frame + "".join(rows)


def _arrow(points: Sequence[tuple[int, int]]) -> str:
    (x0, y0), (x1, y1) = points[-2:]
    dx, dy = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
    left, right = (
        (x1 - 9 * dx - 5 * dy, y1 - 9 * dy - 5 * dx),
        (x1 - 9 * dx + 5 * dy, y1 - 9 * dy + 5 * dx),
    )
    line = " L".join(f"{x} {y}" for x, y in points)
    head = " ".join(f"{x},{y}" for x, y in ((x1, y1), left, right))
    return f'<path d="M{line}"/><polygon class="head" points="{head}"/>\n'
