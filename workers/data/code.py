"""What makes a function this function: a digest that is the same in every process. Pure."""

from __future__ import annotations

import functools
import types
from typing import TYPE_CHECKING

from blake3 import blake3

if TYPE_CHECKING:
    from collections.abc import Iterator

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...))


def name_of(function: object) -> str:
    """Its qualified name, or that of its class."""
    if isinstance(function, functools.partial):
        return name_of(function.func)
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def digest_of(function: object) -> str:
    """The BLAKE3 of its bytecode and constants, and of the plain values it has by default or is closed over.

    Functions that it is closed over count too; what it finds by a global name does not.
    """
    digest = blake3()
    for text in _spelled(function, ()):
        digest.update(text.encode(errors="surrogatepass") + b"\0")
    return digest.hexdigest()


def _spelled(value: object, inside: tuple[object, ...]) -> Iterator[str]:
    """The value as texts; `inside` are the functions that it was found in."""
    if isinstance(value, _PLAIN):
        yield repr(value)
    elif isinstance(value, tuple):
        yield f"tuple of {len(value)}"
        for each in value:
            yield from _spelled(each, inside)
    elif isinstance(value, dict):
        yield from _spelled(tuple(sorted(value.items(), key=lambda item: str(item[0]))), inside)
    elif isinstance(value, frozenset):  # each process iterates it in an order of its own
        yield from sorted("\0".join(_spelled(each, inside)) for each in value)
    elif isinstance(value, types.CodeType):
        yield value.co_code.hex()
        yield from (*value.co_names, *value.co_varnames)
        yield from _spelled(value.co_consts, inside)
    elif isinstance(value, types.FunctionType):
        yield value.__qualname__
        if value not in inside:
            parts = (value.__code__, value.__defaults__, value.__kwdefaults__, _closed_over(value))
            yield from _spelled(parts, (*inside, value))
    elif isinstance(value, functools.partial):
        yield from _spelled((value.func, value.args, value.keywords), inside)
    elif isinstance(value, types.MethodType):
        yield from _spelled(value.__func__, inside)
    else:
        yield type(value).__qualname__
        if callable(value) and isinstance(call := type(value).__call__, types.FunctionType):
            yield from _spelled(call, inside)


def _closed_over(function: types.FunctionType) -> tuple[object, ...]:
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            cells.append(None)
    return tuple(cells)
