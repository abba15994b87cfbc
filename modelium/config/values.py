"""How values are written in a configuration file: sizes, durations, bandwidths, sections."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from modelium import catalog
from modelium.errors import ModeliumError, did_you_mean
from modelium.units import parse_bytes, parse_bytes_per_s, parse_seconds

T = TypeVar("T")


class Section(BaseModel):
    """A mapping in the file; a key that it does not know is an error with a suggestion.

    Where a file says nothing, `model_construct` makes the section: its validator, which takes long
    to build, is only built for what a file says.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys_only(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        known = {field.alias or name for name, field in cls.model_fields.items()}
        for key in given:
            if key not in known:
                hint = did_you_mean(str(key), known) or f" There are {', '.join(sorted(known))}."
                raise PydanticCustomError("unknown_key", "{problem}", _unknown(key, hint))
        return given


def _unknown(key: object, hint: str) -> dict[str, Any]:
    return {"key": str(key), "problem": f"unknown key.{hint}"}


def checked(read: Callable[[Any], Any], accepts: Any = Any) -> BeforeValidator:
    """A validator from a function that raises ModeliumError; `accepts` is for the JSON schema."""

    def validate(given: Any) -> Any:
        try:
            return read(given)
        except ModeliumError as error:
            raise PydanticCustomError("modelium", "{problem}", {"problem": str(error)}) from None

    return BeforeValidator(validate, json_schema_input_type=accepts)


def _quantity(read: Callable[[Any], Any], example: str) -> tuple[BeforeValidator, WithJsonSchema]:
    def text_or_number(given: Any) -> Any:
        return read(given if isinstance(given, str | int | float) else str(given))

    schema = {"anyOf": [{"type": "number"}, {"type": "string"}], "examples": [example]}
    return checked(text_or_number), WithJsonSchema(schema)


Bytes = Annotated[int, *_quantity(parse_bytes, "80GiB"), Field(ge=0)]
Seconds = Annotated[float, *_quantity(parse_seconds, "30s"), Field(ge=0)]
BytesPerS = Annotated[float, *_quantity(parse_bytes_per_s, "6GB/s"), Field(gt=0)]
GpuKind = Annotated[str, checked(lambda n: catalog.gpu(n).name if isinstance(n, str) else n)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


_UNITS = ("", "_s", "_bytes", "_bytes_per_s")


def build(base: T, section: Section, ignore: Container[str] = (), **more: Any) -> T:
    """A dataclass with what a section sets: key `ttft` sets `ttft_s`; other fields stay."""
    names = {field.name for field in dataclasses.fields(base)}  # type: ignore[arg-type]
    values: dict[str, Any] = dict(more)
    for key in type(section).model_fields:
        value = getattr(section, key)
        if value is not None and key not in more and key not in ignore:
            name = key.removesuffix("_")
            values[next(name + unit for unit in _UNITS if name + unit in names)] = value
    return dataclasses.replace(base, **values)  # type: ignore[type-var]
