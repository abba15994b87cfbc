"""Errors that a person can put right.

ModeliumError            the command line prints any of them as one line and exits with 2
├── ConfigError          a configuration file or option is wrong
├── TraceError           a trace file is wrong: names the file and the row
├── ProfileError         no facts about a GPU or a model, or wrong ones
├── PolicyError          an unknown policy, a wrong parameter, or a policy that broke its contract
└── RecordError          a run's output folder cannot be read or written

Parts that serve live have their own, below ModeliumError, in the files that raise them: ApiError
(`gateway`), StartError and EngineError (`managers`), RefusedError and JournalError (`live`),
RepositoryError (`repository`), ServerError (`client`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ModeliumError(Exception):
    """Something a person can put right; the message says what, where and how."""


class ConfigError(ModeliumError):
    """A configuration file or a command-line option is wrong."""


class TraceError(ModeliumError):
    """A trace file is wrong; the message names the file and the row."""


class ProfileError(ModeliumError):
    """Facts about a GPU or a model are missing or wrong."""


class PolicyError(ModeliumError):
    """A policy is unknown, was given a wrong parameter, or broke its contract."""


class RecordError(ModeliumError):
    """The output folder of a run cannot be read or written."""


def one_line(text: str) -> str:
    """Return `text` as a terminal may show it: names and files may hold what breaks its lines."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


SLIP = 0.9
"""From this likeness on, a name that need not be known is a known one with a slip."""


def did_you_mean(wrong: str, known: Iterable[str], alike: float = 0.6) -> str:
    """Return " Did you mean 'x'?" for the nearest of `known`, or an empty string.

    `alike`, from 0 to 1, is how near it has to be.
    """
    near = difflib.get_close_matches(wrong, list(known), n=1, cutoff=alike)
    return f" Did you mean {near[0]!r}?" if near else ""
