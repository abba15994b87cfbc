"""The part of the compiled plane that needs numba; imported when something has to be compiled."""

# Numba and llvmlite have no types.
# mypy: disable-error-code="no-untyped-call,untyped-decorator,var-annotated,arg-type"
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numba import njit, typeof, types
from numba.core import cgutils
from numba.extending import lower_builtin, type_callable

from modelium.sim.jit.hints import index

Readers = Mapping[Callable[..., Any], Callable[[], Any]]
"""See `modelium.sim.jit.decorators.reader`."""
_known = set[Callable[..., Any]]()
"""Readers that numba has been told of."""


def dispatcher(
    function: Callable[..., Any], options: dict[str, Any], stamp: str, readers: Readers
) -> Any:
    """Numba's compiled form of `function`; its cache holds for sources with this stamp only."""
    _tell_of(readers)
    made = njit(**options)(function)
    file = getattr(made._cache, "_cache_file", None)
    if file is not None:  # None where numba is told not to compile
        file._source_stamp = (file._source_stamp, stamp)
    return made


def assembly(
    function: Callable[..., Any], options: dict[str, Any], readers: Readers
) -> tuple[str, str]:
    """LLVM's text of a function of integers, without reference to Python, and its name there."""
    _tell_of(readers)
    plain = {**options, "cache": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    made, signature = njit(**plain)(function), (types.int64,) * function.__code__.co_argcount
    made.compile(signature)
    result = made.overloads[signature]
    gives = result.signature.return_type
    if gives not in (types.int64, types.boolean, types.none):
        raise TypeError(f"{function.__name__} gives {gives}: an entry gives an integer or nothing")
    text: str = made.inspect_llvm(signature)
    return text, result.fndesc.llvm_func_name


def _tell_of(readers: Readers) -> None:
    for function, example in readers.items():
        if function not in _known:
            _known.add(function)
            _tell(function, typeof(example()))


def _tell(function: Callable[..., Any], kind: Any) -> None:
    @type_callable(function)
    def typed(context: Any) -> Any:
        return lambda address: kind

    @lower_builtin(function, types.Integer)
    def lowered(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = context.get_value_type(kind).as_pointer()
        return _load(context, builder, kind, builder.inttoptr(arguments[0], pointer))


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
