"""How values are written in a configuration file: sizes, durations, bandwidths, sections.

Sections are plain dataclasses. Pydantic checks them, but is imported only when there is a file to
check: that is a fifth of what a simulation takes to start.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, TypeVar, cast, dataclass_transform

from modelium import catalog
from modelium.errors import ModeliumError, did_you_mean
from modelium.units import parse_bytes, parse_bytes_per_s, parse_seconds

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
    from pydantic_core import CoreSchema

T = TypeVar("T")


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,)
)
class Section:
    """A mapping in the file; a key that it does not know is an error with a suggestion."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "extra": "forbid",
        "alias_generator": lambda name: name.removesuffix("_"),  # `for` is no name in Python
    }

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)(cls)

    # Once for all sections: made anew for each, they would be 40 % of the time that it takes.

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in vars(self).items())})"

    @classmethod
    def of(cls, given: Any) -> Self:
        """Check what a file says. Raises pydantic's ValidationError with all that is wrong."""
        kind: Any = cls
        section: Self = adapter(kind).validate_python(given)
        return section

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        # The whole takes over the name by which other sections refer to this one.
        plain: dict[str, Any] = {**handler(source)}
        name = plain.pop("ref", None)
        return core_schema.no_info_before_validator_function(
            cls._known_keys_only, cast("CoreSchema", plain), ref=name
        )

    @classmethod
    def _known_keys_only(cls, given: Any) -> Any:
        from pydantic_core import PydanticCustomError

        known = keys(cls)
        for key in given if isinstance(given, dict) else ():
            if key not in known:
                hint = did_you_mean(str(key), known) or f" There are {', '.join(sorted(known))}."
                problem = {"key": str(key), "problem": f"unknown key.{hint}"}
                raise PydanticCustomError("unknown_key", "{problem}", problem)
        return given


def keys(section: Section | type[Section]) -> dict[str, str]:
    """The keys that a section knows, with the names of their fields."""
    return {name.removesuffix("_"): name for name in _fields(section)}


def said(section: Section) -> dict[str, Any]:
    """What a section sets, by the names of its fields."""
    given = {name: getattr(section, name) for name in _fields(section)}
    return {name: value for name, value in given.items() if value is not None}


def _fields(section: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(section)]


@cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """What checks and describes values of a type: pydantic, from here on."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


class Bounds:
    """What a number or a text must keep to, in pydantic's words: ge, gt, le, min_length, ..."""

    def __init__(self, **bounds: Any) -> None:
        self._bounds = bounds

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return {**handler(source), **self._bounds}


class _AnyJson:
    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        from pydantic import JsonValue

        return handler.generate_schema(JsonValue)


class Read:
    """Read a value with a function that raises ModeliumError, before it is checked otherwise."""

    def __init__(self, read: Callable[[Any], Any], accepts: Any = Any) -> None:
        """`accepts`: the type of what may be written, for the JSON schema."""
        self._read, self._accepts = read, accepts

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        from pydantic_core import core_schema

        accepts = handler.generate_schema(self._accepts)
        return core_schema.no_info_before_validator_function(
            self._checked, handler(source), json_schema_input_schema=accepts
        )

    def _checked(self, given: Any) -> Any:
        from pydantic_core import PydanticCustomError

        try:
            return self._read(given)
        except ModeliumError as error:
            raise PydanticCustomError("modelium", "{problem}", {"problem": str(error)}) from None


class Quantity(Read):
    """Read a number with a unit."""

    def __init__(self, read: Callable[[Any], Any], example: str) -> None:
        super().__init__(
            lambda given: read(given if isinstance(given, str | int | float) else str(given))
        )
        self._example = example

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [{"type": "number"}, {"type": "string"}], "examples": [self._example]}


Bytes = Annotated[int, Bounds(ge=0), Quantity(parse_bytes, "80GiB")]
Size = Annotated[int, Bounds(gt=0), Quantity(parse_bytes, "80GiB")]
Seconds = Annotated[float, Bounds(ge=0), Quantity(parse_seconds, "30s")]
Period = Annotated[float, Bounds(gt=0), Quantity(parse_seconds, "30s")]
BytesPerS = Annotated[float, Bounds(gt=0), Quantity(parse_bytes_per_s, "6GB/s")]
GpuKind = Annotated[str, Read(lambda n: catalog.kind_of(n) if isinstance(n, str) else n)]
Share = Annotated[float, Bounds(ge=0, le=1)]
Rate = Annotated[float, Bounds(gt=0)]
Factor = Annotated[float, Bounds(ge=1)]
NotNegative = Annotated[float, Bounds(ge=0)]
Number = Annotated[int, Bounds(ge=0)]
Count = Annotated[int, Bounds(ge=1)]
Json = Annotated[Any, _AnyJson()]
Port = Annotated[int, Bounds(ge=1, le=65535)]
Host = Annotated[str, Bounds(min_length=1)]


_UNITS = ("", "_s", "_bytes", "_bytes_per_s")


def build(base: T, section: Section, ignore: Container[str] = (), **more: Any) -> T:
    """A dataclass with what a section sets: key `ttft` sets `ttft_s`; other fields stay."""
    names, values = _fields(base), dict(more)
    for field, value in said(section).items():
        if field not in more and field not in ignore:
            key = field.removesuffix("_")
            values[next(key + unit for unit in _UNITS if key + unit in names)] = value
    return dataclasses.replace(base, **values)  # type: ignore[type-var]
