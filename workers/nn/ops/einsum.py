"""Contractions of two tensors: einsum, tensordot and dot, by products of matrices."""

from __future__ import annotations

import math
import re
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.numerics import aligned_empty
from workers.nn.ops import attributes as kinds
from workers.nn.ops.arithmetic import multiply
from workers.nn.ops.base import Op, Run, Site, apply, as_operand, axis_of, register, same_dtype, together
from workers.nn.ops.reductions import sum as sum_along
from workers.nn.ops.shapes import transpose
from workers.nn.tensor import Dims, Spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers.nn.numerics import Array, Shape

_SUBSCRIPTS = re.compile(r"([A-Za-z]*),([A-Za-z]*)->([A-Za-z]*)")


@dataclass(frozen=True, slots=True)
class Subscripts:
    """A letter for each axis of both operands and the result, of which each stands in two at least."""

    a: str
    b: str
    out: str

    @classmethod
    def parse(cls, text: str) -> Subscripts:
        """ConfigurationError for what is no contraction of two operands that has gradients."""
        found = _SUBSCRIPTS.fullmatch(text)
        if found is None:
            raise ConfigurationError(f"einsum: {text!r} is not of the form 'ab,bc->ac'")
        a, b, out = found.groups()
        for letter in {*a, *b, *out}:
            if max(part.count(letter) for part in (a, b, out)) > 1:
                raise ConfigurationError(f"einsum: {letter!r} stands twice in one part of {text!r}")
            if sum(letter in part for part in (a, b, out)) < 2:
                raise ConfigurationError(f"einsum: {letter!r} stands in one part of {text!r} only")
        return cls(a, b, out)

    def infer(self, a: Dims, b: Dims) -> Dims:
        """The shape of the result; None goes with any length."""
        lengths: dict[str, int | None] = {}
        for letters, shape in ((self.a, a), (self.b, b)):
            if len(letters) != len(shape):
                raise ConfigurationError(f"einsum: {letters!r} does not fit shape {shape}")
            for letter, n in zip(letters, shape, strict=True):
                if lengths.get(letter) is None:
                    lengths[letter] = n
                elif n not in (None, lengths[letter]):
                    raise ConfigurationError(f"einsum: {letter!r} is {lengths[letter]} and {n} long")
        return tuple(lengths[letter] for letter in self.out)


class Contraction:
    """`subscripts` of arrays of these shapes as products of matrices, with workspaces of its own.

    The letters fall into those of both operands and the result (leading axes of the products), those of one
    operand and the result (rows or columns), and those of both operands alone (summed over).
    """

    def __init__(self, subscripts: Subscripts, a: Shape, b: Shape, dtype: np.dtype[Any]) -> None:
        letters = subscripts
        length = dict(zip(letters.a, a, strict=True)) | dict(zip(letters.b, b, strict=True))
        leading = [each for each in letters.out if each in letters.a and each in letters.b]
        rows = [each for each in letters.out if each not in letters.b]
        columns = [each for each in letters.out if each not in letters.a]
        summed = [each for each in letters.a if each not in letters.out]
        self._sums = bool(summed)
        self._a = _Arranged(letters.a, (leading, rows, summed), length, dtype)
        self._b = _Arranged(letters.b, (leading, summed, columns), length, dtype)
        self._out = _Arranged(letters.out, (leading, rows, columns), length, dtype)

    def __call__(self, a: Array, b: Array, out: Array) -> Array:
        """The result, into `out`, which is contiguous."""
        a_BRS, b_BSC, out_BRC = self._a.read(a), self._b.read(b), self._out.target(out)
        if self._sums:
            np.matmul(a_BRS, b_BSC, out=out_BRC)
        else:  # a product of matrices would be one call for each leading index
            np.multiply(a_BRS, b_BSC, out=out_BRC)
        self._out.write(out_BRC, out)
        return out


class _Arranged:
    """An operand's axes as leading ones, and two groups of which each becomes one axis of a matrix."""

    def __init__(
        self, letters: str, groups: Sequence[Sequence[str]], length: Mapping[str, int], dtype: np.dtype[Any]
    ) -> None:
        leading, rows, columns = groups
        self._order = [letters.index(each) for group in groups for each in group]
        self._back = list(np.argsort(self._order))
        self._apart = tuple(length[letters[i]] for i in self._order)
        self._matrices = (
            *(length[each] for each in leading),
            math.prod(length[each] for each in rows),
            math.prod(length[each] for each in columns),
        )
        probe = np.empty([length[each] for each in letters], dtype).transpose(self._order)
        self._is_view = _fits(probe, self._matrices)
        self._copy = None if self._is_view else aligned_empty(self._matrices, dtype)

    def read(self, x: Array) -> Array:
        """The operand as matrices: a view where BLAS takes one, else a copy."""
        x = x.transpose(self._order)
        if self._copy is None:
            return x.reshape(self._matrices)
        np.copyto(self._copy.reshape(self._apart), x)
        return self._copy

    def target(self, out: Array) -> Array:
        """Where the product is to be written."""
        return out.transpose(self._order).reshape(self._matrices) if self._copy is None else self._copy

    def write(self, product: Array, out: Array) -> None:
        """Bring the product to where the result belongs."""
        if self._copy is not None:
            out[...] = product.reshape(self._apart).transpose(self._back)


def _fits(x: Array, shape: Shape) -> bool:
    """Whether x has this shape without a copy, as matrices that BLAS takes: rows or columns lie together."""
    try:
        view = x.reshape(shape, copy=False)
    except ValueError:
        return False
    return x.size == 0 or x.itemsize in view.strides[-2:] or 1 in shape[-2:]


@register
class Einsum(Op):
    """Attribute "subscripts": "ab,bc->ac", with a letter for each axis."""

    name = "einsum"
    arity = (2, 2)
    attributes: ClassVar = {"subscripts": kinds.text}

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        a, b = inputs
        return Spec(Subscripts.parse(attrs["subscripts"]).infer(a.shape, b.shape), same_dtype(a, b))

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        letters = Subscripts.parse(site.attrs["subscripts"])
        (a, b), y, dtype = site.inputs, site.outputs[0], np.dtype(site.outputs[0].dtype)
        self._forward = Contraction(letters, a.dims, b.dims, dtype)
        self._y = site.empty()
        self._a = self._b = self._y
        self._da = self._db = None
        if site.needs[0]:
            by_a = Subscripts(letters.out, letters.b, letters.a)
            self._da = (Contraction(by_a, y.dims, b.dims, dtype), site.like(0))
        if site.needs[1]:
            by_b = Subscripts(letters.a, letters.out, letters.b)
            self._db = (Contraction(by_b, a.dims, y.dims, dtype), site.like(1))

    def forward(self, run: Run, *inputs: Array) -> Array:
        self._a, self._b = inputs
        return self._forward(self._a, self._b, self._y)

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        da = db = None
        if self._da is not None:
            contract, workspace = self._da
            da = contract(dy, self._b, workspace if into[0] is None else into[0])
        if self._db is not None:
            contract, workspace = self._db
            db = contract(self._a, dy, workspace if into[1] is None else into[1])
        return [da, db]


def einsum(subscripts: str, *operands: Any) -> Any:
    """Einstein's sum of one operand or two, as in NumPy; "..." stands for the same axes wherever it does.

    A letter may not stand twice in one operand, and axes of length 1 are not broadcast.
    """
    tensors = together(*operands)
    parts, out = _expanded(subscripts, [len(each.spec.shape) for each in tensors])
    if len(tensors) == 1:
        return _arranged(tensors[0], parts[0], out)
    if len(tensors) != 2:
        raise ConfigurationError(f"einsum: {len(tensors)} operands: give one or two at a time")
    # What stands in one operand alone is summed over beforehand.
    for i, other in ((0, 1), (1, 0)):
        kept = "".join(letter for letter in parts[i] if letter in parts[other] or letter in out)
        tensors[i], parts[i] = _arranged(tensors[i], parts[i], kept), kept
    return apply("einsum", *tensors, subscripts=f"{parts[0]},{parts[1]}->{out}")


def _arranged(x: Any, letters: str, wanted: str) -> Any:
    """x summed over the axes that are not wanted, the others in their order."""
    if (
        len(set(letters)) != len(letters)
        or not set(wanted) <= set(letters)
        or len(set(wanted)) != len(wanted)
    ):
        raise ConfigurationError(f"einsum: {letters!r} cannot become {wanted!r}")
    gone = [i for i, letter in enumerate(letters) if letter not in wanted]
    left = [letter for letter in letters if letter in wanted]
    return transpose(sum_along(x, gone) if gone else x, [left.index(letter) for letter in wanted])


def _expanded(subscripts: str, ndims: Sequence[int]) -> tuple[list[str], str]:
    """The letters of the operands and of the result, with letters for "..." too."""
    text = subscripts.replace(" ", "")
    left, arrow, out = text.partition("->")
    parts = left.split(",")
    if len(parts) != len(ndims):
        raise ConfigurationError(f"einsum: {subscripts!r} is for {len(parts)} operands, not {len(ndims)}")
    free = [letter for letter in string.ascii_letters if letter not in text]
    hidden = {n - len(part.replace("...", "")) for part, n in zip(parts, ndims, strict=True) if "..." in part}
    if len(hidden) > 1 or min(hidden, default=0) < 0:
        raise ConfigurationError(f'einsum: "..." in {subscripts!r} stands for axes of unlike number')
    rest = "".join(free[: max(hidden, default=0)])
    if not arrow:  # in alphabetical order, those that stand once
        once = sorted(letter for letter in {*left} - {*",."} if left.count(letter) == 1)
        out = ("..." if "..." in left else "") + "".join(once)
    found = [part.replace("...", rest, 1) for part in (*parts, out)]
    for part, n in zip(found, ndims, strict=False):
        if len(part) != n or (not part.isalpha() and part):
            raise ConfigurationError(f"einsum: {subscripts!r} does not fit operands of {ndims} axes")
    return found[:-1], found[-1]


def tensordot(x1: Any, x2: Any, axes: Any = 2) -> Any:
    """The sum over axes of both: so many last of x1 and first of x2, or those that the two lists name."""
    a, b = together(x1, x2)
    ndims = len(a.spec.shape), len(b.spec.shape)
    if isinstance(axes, int):
        pairs = [list(range(ndims[0] - axes, ndims[0])), list(range(axes))]
    else:
        pairs = [[each] if isinstance(each, int) else list(each) for each in axes]
    firsts = [axis_of(i, ndims[0]) for i in pairs[0]]
    seconds = [axis_of(i, ndims[1]) for i in pairs[1]]
    if len(firsts) != len(seconds):
        raise ConfigurationError(f"tensordot: axes {axes!r} are not pairs")
    of_a, of_b = list(string.ascii_lowercase[: ndims[0]]), list(string.ascii_uppercase[: ndims[1]])
    for i, j in zip(firsts, seconds, strict=True):
        of_b[j] = of_a[i]
    out = [each for each in (*of_a, *of_b) if not (each in of_a and each in of_b)]
    return apply("einsum", a, b, subscripts=f"{''.join(of_a)},{''.join(of_b)}->{''.join(out)}")


def dot(x1: Any, x2: Any) -> Any:
    """The sum over the last axis of x1 and the last but one (or only one) of x2; a product where one is a
    number."""
    a, b = as_operand(x1), as_operand(x2)
    if not a.spec.shape or not b.spec.shape:
        return multiply(a, b)
    return tensordot(a, b, (-1, -2 if len(b.spec.shape) > 1 else -1))
