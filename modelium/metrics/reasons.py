"""Why a decision was taken, as one of a few labels.

Reasons are sentences with numbers for people; as a label each would be a series of its own. How one
begins says which kind it is; `KINDS` has a word for each.
"""

from __future__ import annotations

import re

KINDS = (
    ("operator", r"operator|it is (pinned|removed)"),
    ("waiting", r"\d+ waiting"),
    ("queued", r"\d+ queued"),
    ("min_replicas", r"\d+ of at least"),
    ("plan", r"(the )?plan\b|not in the plan"),
    ("idle", r"idle"),
    ("makes_room", r"[^;]*\blowest\b|makes room"),
    ("moved", r"moved"),
    ("retry", r"again|retry|.* failed it before"),
    ("fault", r".*\b(lost|crashed|hung|ended|stopping)\b"),
    ("none", r"$"),
)
"""Label and what such a reason begins with; the first that fits counts."""
OTHER = "other"
_MATCHERS = tuple((label, re.compile(pattern).match) for label, pattern in KINDS)
_WORD = re.compile(r"[a-z][a-z0-9_]{0,31}").fullmatch


def kind_of(reason: str) -> str:
    """The kind of a reason: a single plain word stands for itself, a sentence is looked up."""
    if _WORD(reason):
        return reason
    return next((label for label, matches in _MATCHERS if matches(reason)), OTHER)
