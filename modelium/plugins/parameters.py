"""A constructor's keywords as a person sees and sets them: names, types, defaults, help, values."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from modelium.errors import ConfigError, PolicyError, did_you_mean
from modelium.units import parse_bytes, parse_seconds

EMPTY = inspect.Parameter.empty
WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One keyword that can be given as text."""

    name: str
    kinds: tuple[Any, ...]
    """bool, int, float, str, None, or the values of a Literal: what the text may become."""
    default: Any
    """`EMPTY` if it must be given."""
    help: str

    @property
    def type_name(self) -> str:
        """The type as a person would say it."""
        return " or ".join(k.__name__ if isinstance(k, type) else str(k) for k in self.kinds)

    def convert(self, text: str) -> Any:
        """Read a value; raises PolicyError if it has the wrong type."""
        if text.lower() == "none" and None in self.kinds:
            return None
        for kind in self.kinds:
            if not isinstance(kind, type):
                if kind is not None and text == str(kind):
                    return kind
                continue
            try:
                return _read(kind, self.name, text)
            except (ValueError, KeyError, ConfigError):
                continue
        hint = did_you_mean(text, [str(k) for k in self.kinds if not isinstance(k, type)])
        raise PolicyError(f"{self.name} is {text!r}, expected {self._wanted}.{hint}")

    @property
    def _wanted(self) -> str:
        """What the text should have been; more than the type where units are read too."""
        if float in self.kinds and self.name.endswith("_s"):
            return self.type_name.replace("float", "a duration such as 30s")
        if self.name.endswith("_bytes"):
            return self.type_name.replace("int", "a size in bytes such as 80GiB")
        words = {"float": "a number", "int": "a whole number", "bool": "true or false"}
        return " or ".join(words.get(word, word) for word in self.type_name.split(" or "))


def parameters(maker: Callable[..., Any]) -> list[Parameter]:
    """List the parameters of a class (through `**options` also its base's) or of a function."""
    found: dict[str, Parameter] = {}
    for function, doc in _constructors(maker):
        told = _told(doc)
        hints = _hints(function)
        for p in inspect.signature(function).parameters.values():
            if p.name == "self" or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                continue
            kinds = tuple(_kinds(hints.get(p.name, type(p.default))))
            if any(kinds) and p.name not in found:
                found[p.name] = Parameter(p.name, kinds, p.default, told.get(p.name, ""))
    return list(found.values())


def _constructors(maker: Callable[..., Any]) -> Iterator[tuple[Callable[..., Any], str]]:
    if not inspect.isclass(maker):
        yield maker, inspect.cleandoc(maker.__doc__ or "")
        return
    for cls in maker.__mro__:
        constructor = vars(cls).get("__init__")
        if constructor is None or cls is object:
            continue
        yield constructor, inspect.cleandoc(cls.__doc__ or "")
        kinds = {p.kind for p in inspect.signature(constructor).parameters.values()}
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            return


def _hints(function: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return get_type_hints(function)
    except NameError:  # names imported for type checkers only: the defaults' types must do
        return {}


def _kinds(annotation: Any) -> Iterator[Any]:
    """What text can become a value of this annotation; nothing if none can."""
    if get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _kinds(part)
    elif get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif annotation in (bool, int, float, str):
        yield annotation
    elif annotation is type(None):
        yield None


def _told(doc: str) -> dict[str, str]:
    """Lines "name: what it is" of a docstring, with the lines that continue them."""
    lines = re.findall(r"^([a-z]\w*): (.*(?:\n(?!\w+: ).+)*)", doc, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in lines}


def _read(kind: type, name: str, text: str) -> Any:
    if kind is bool:
        return WORDS[text.lower()]
    if kind is str:
        return text
    if name.endswith("_bytes"):
        return parse_bytes(text)
    if kind is float and name.endswith("_s"):
        return parse_seconds(text)
    value = kind(text)
    if value != value:
        raise ValueError(text)
    return value
