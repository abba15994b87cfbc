"""From a name such as "gdsf:variant=gds" to a policy: built-ins, plug-ins, checked parameters."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from modelium.core import Policy, traits
from modelium.errors import PolicyError, did_you_mean
from modelium.plugins.parameters import EMPTY, Parameter, parameters
from modelium.policies import POLICIES

if TYPE_CHECKING:
    from modelium.traces import Trace

GROUP = "modelium.policies"
"""Entry-point group in which other packages offer policies."""


def names() -> list[str]:
    """Name all policies: built-ins first, then those of installed packages."""
    return list(_known())


def make_policy(
    text: str,
    *,
    rng_seed: int = 0,
    trace: Trace | None = None,
    models: Iterable[str] = (),
) -> Policy:
    """Make the policy that `text` names, "name" or "name:key=value,key=value".

    A policy with a parameter `seed` gets `rng_seed` unless `text` gives one. One that is told the
    future (class attribute `wants_trace`) gets each model's arrival times from `trace`, as its
    keyword `future`; `models` are all that the cluster serves. Raises PolicyError for unknown
    names, unknown or missing parameters, values of the wrong type and periods of no length.
    """
    name, _, rest = text.partition(":")
    name = name.strip()
    maker = find(name)
    known = {parameter.name: parameter for parameter in parameters(maker)}
    given = dict(_pair(name, known, pair) for pair in rest.split(",") if pair.strip())
    if "seed" in known:
        given.setdefault("seed", rng_seed)
    if traits(maker).wants_trace:
        if trace is None:
            raise PolicyError(f"policy {name!r} knows the future, so it needs a trace")
        given["future"] = arrivals_by_model(trace, models)
    missing = [p.name for p in known.values() if p.default is EMPTY and p.name not in given]
    if missing:
        example = ",".join(f"{key}=…" for key in missing)
        raise PolicyError(f"policy {name!r} needs {', '.join(missing)}: write {name}:{example}")
    policy: Policy = maker(**given)
    every_s = traits(policy).every_s
    if every_s is not None and not every_s > 0:
        raise PolicyError(f"policy {name!r} has every_s = {every_s:g}: the period must be above 0")
    return policy


def with_defaults(text: str, defaults: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Name and parameters that `text` gives, and those of `defaults` that the policy has.

    Raises PolicyError for unknown names.
    """
    name, _, rest = text.partition(":")
    known = {parameter.name for parameter in parameters(find(name.strip()))}
    given = {key: value for key, value in defaults.items() if key in known}
    for pair in filter(None, rest.split(",")):
        key, _, value = pair.partition("=")
        given[key.strip()] = value.strip()
    return name.strip(), given


def find(name: str) -> Any:
    """Import the class (or function) that makes the policy called `name`."""
    source = POLICIES.get(name) or _known().get(name)  # built-ins need no look at all packages
    if source is None:
        hint = did_you_mean(name, _known())
        raise PolicyError(f"no policy called {name!r}.{hint} (modelium policies lists them)")
    try:
        if isinstance(source, EntryPoint):
            return source.load()
        module, _, attribute = source.partition(":")
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        where = _where(source)
        raise PolicyError(f"policy {name!r} cannot be imported from {where}: {error}") from error


def describe(name: str) -> dict[str, Any]:
    """Say what one policy does, with its parameters, their defaults and its source: plain data."""
    maker = find(name)
    doc = inspect.cleandoc(maker.__doc__ or "")
    text, _, source = doc.partition("\nSource: ")
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    return {
        "name": name,
        "where": _where(_known()[name]),
        "summary": paragraphs[0],
        "details": [part for part in paragraphs[1:] if not re.match(r"[a-z]\w*: ", part)],
        "source": " ".join(source.split()),
        "told_the_trace": traits(maker).wants_trace,
        "parameters": [_row(parameter) for parameter in parameters(maker)],
    }


def arrivals_by_model(trace: Trace, models: Iterable[str] = ()) -> dict[str, list[float]]:
    """Arrival times of each model in `trace`, in seconds, ascending; models without any too."""
    arrivals: dict[str, list[float]] = {model: [] for model in (*models, *trace.model.names)}
    for code, name in enumerate(trace.model.names):
        arrivals[name] = trace.arrival_s[trace.model.codes == code].tolist()
    return arrivals


def _known() -> dict[str, str | EntryPoint]:
    """Built-ins win over plug-ins of the same name."""
    plugins = {entry.name: entry for entry in entry_points(group=GROUP)}
    return {**POLICIES, **{n: entry for n, entry in plugins.items() if n not in POLICIES}}


def _where(source: str | EntryPoint) -> str:
    return source if isinstance(source, str) else source.value


def _pair(name: str, known: dict[str, Parameter], pair: str) -> tuple[str, Any]:
    key, equals, value = (part.strip() for part in pair.partition("="))
    if not equals:
        raise PolicyError(f"policy {name!r}: {pair.strip()!r} is not of the form key=value")
    if key not in known:
        hint = did_you_mean(key, known) or f" It has {', '.join(known) or 'no parameters'}."
        raise PolicyError(f"policy {name!r} has no parameter {key!r}.{hint}")
    try:
        return key, known[key].convert(value)
    except PolicyError as error:
        raise PolicyError(f"policy {name!r}: {error}") from None


def _row(parameter: Parameter) -> dict[str, Any]:
    default = parameter.default
    plain = isinstance(default, bool | int | float | str) or default is None
    finite = not isinstance(default, float) or abs(default) != float("inf")
    return {
        "name": parameter.name,
        "type": parameter.type_name,
        "required": default is EMPTY,
        "default": default if plain and finite else None if default is EMPTY else str(default),
        "help": parameter.help,
    }
