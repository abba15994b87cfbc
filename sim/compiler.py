"""The part of the compiled plane that needs numba; imported when something has to be compiled."""

# Numba and llvmlite have no types.
# mypy: disable-error-code="no-untyped-call,untyped-decorator,var-annotated,arg-type"
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit, typeof, types
from numba.core import cgutils
from numba.extending import lower_builtin, type_callable

from modelium.sim.handle import blank, world_at
from modelium.sim.jit import index

WORLD = typeof(blank())
"""The one type that all worlds have, as numba names it."""


def dispatcher(function: Callable[..., Any], options: dict[str, Any], stamp: str) -> Any:
    """Numba's compiled form of `function`; its cache holds for sources with this stamp only."""
    made = njit(**options)(function)
    file = getattr(made._cache, "_cache_file", None)
    if file is not None:  # None where numba is told not to compile
        file._source_stamp = (file._source_stamp, stamp)
    return made


def assembly(function: Callable[..., Any], options: dict[str, Any]) -> tuple[str, str]:
    """LLVM's text of a function of integers, without reference to Python, and its name there."""
    plain = {**options, "cache": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    made, signature = njit(**plain)(function), (types.int64,) * function.__code__.co_argcount
    made.compile(signature)
    result = made.overloads[signature]
    gives = result.signature.return_type
    if gives not in (types.int64, types.boolean, types.none):
        raise TypeError(f"{function.__name__} gives {gives}: an entry gives an integer or nothing")
    text: str = made.inspect_llvm(signature)
    return text, result.fndesc.llvm_func_name


@type_callable(world_at)
def _type(context: Any) -> Any:
    return lambda address: WORLD


@lower_builtin(world_at, types.Integer)
def _lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    pointer = context.get_value_type(WORLD).as_pointer()
    return _load(context, builder, WORLD, builder.inttoptr(arguments[0], pointer))


@type_callable(index)
def _same_type(context: Any) -> Any:
    return lambda i: i


@lower_builtin(index, types.Integer)
def _assume(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    (i,) = arguments
    builder.assume(builder.icmp_signed(">=", i, i.type(0)))
    return i


def _load(context: Any, builder: Any, kind: Any, place: Any) -> Any:
    """Load a tuple field by field: LLVM is slow with aggregates of a thousand words."""
    if not isinstance(kind, types.BaseTuple):
        return builder.load(place)
    fields = [
        _load(context, builder, field, cgutils.gep_inbounds(builder, place, 0, k))
        for k, field in enumerate(kind)
    ]
    return context.make_tuple(builder, kind, fields)
