"""One case or more for each operation: a function of tensors that uses it, and operands."""

from __future__ import annotations

import numpy as np

from tests.unit.nn.fused_op_cases import FUSED_CASES
from tests.unit.nn.operands import BOX, FLAGS, POSITIVE, Case, X, numbers, one, two, whole
from workers.nn import activations, ops
from workers.nn.activations import FUSED
from workers.nn.ops.base import apply


def _activations() -> dict[str, Case]:
    wide = numbers(4, 6, low=-8, high=8)
    special = ("linear", "rectifier", "gelu", "threshold")
    return {name: one(FUSED[name], wide) for name in FUSED if name not in special} | {
        "exponential": one(activations.exponential),
        "glu": one(ops.glu, wide),
        "relu with arguments": one(lambda x: activations.relu(x, 0.3, max_value=1.5, threshold=-0.7), wide),
        "gelu": one(lambda x: ops.gelu(x, approximate=False), wide),
        "gelu by tanh": one(ops.gelu, wide),
        "threshold": one(lambda x: ops.threshold(x, 0.3, -1.0), wide),
        "softmax of an axis": one(lambda x: ops.softmax(x, axis=1), BOX),
        "log_softmax of an axis": one(lambda x: ops.log_softmax(x, axis=1), BOX),
        "sparsemax of an axis": one(lambda x: ops.sparsemax(x, axis=1), numbers(4, 3, 2, low=-2, high=2)),
        "leaky_relu of a steep slope": one(lambda x: ops.leaky_relu(x, 1.5), wide),
        "elu of an alpha": one(lambda x: ops.elu(x, 0.7), wide),
        "celu of an alpha": one(lambda x: ops.celu(x, 0.7), wide),
    }


UNARY = """negative absolute sign square exp expm1 sin cos tan arctan erf floor ceil round isnan isinf
    isfinite logical_not""".split()  # noqa: SIM905 names in one column would fill a page
BINARY = """add subtract multiply floor_divide mod maximum minimum equal not_equal less less_equal greater
    greater_equal logical_and logical_or logical_xor""".split()  # noqa: SIM905

CASES: dict[str, Case] = {
    **FUSED_CASES,
    **{f"activation {name}": case for name, case in _activations().items()},
    **{name: one(getattr(ops, name)) for name in UNARY},
    **{name: one(getattr(ops, name), POSITIVE) for name in ("sqrt", "rsqrt", "reciprocal", "log", "log1p")},
    **{name: two(getattr(ops, name)) for name in BINARY},
    "divide": two(ops.divide, X, numbers(3, low=0.5, high=2)),
    "divide of one shape": Case(ops.divide, (X, POSITIVE), (0, 1)),
    "add of one shape": Case(ops.add, (X, POSITIVE), (0, 1)),
    "subtract of one shape": Case(ops.subtract, (X, POSITIVE), (0, 1)),
    "multiply with more axes": Case(ops.multiply, (X, numbers(2, 1, 3))),
    "add of one tensor to itself": one(lambda x: x + x),
    "multiply of one tensor by itself": one(lambda x: x * x),
    "power": two(ops.power, POSITIVE),
    "power of a whole number": one(lambda x: x**3),
    "square by power": one(lambda x: x**2),
    "clip": one(lambda x: ops.clip(x, -1.01, 0.52)),
    "clip on one side": one(lambda x: ops.clip(x, None, 0.52)),
    "where": Case(ops.where, (FLAGS, X, numbers(3)), (0, 1)),
    "where of one shape": Case(ops.where, (FLAGS, X, POSITIVE), (0, 1, 2)),
    "tril": one(lambda x: ops.tril(x, 1), BOX),
    "triu": one(lambda x: ops.triu(x, -1), BOX),
    "cast": one(lambda x: ops.cast(ops.cast(x, "float64"), "float32") * x),
    "identity": one(lambda x: apply("identity", x)),
    "stop_gradient": one(lambda x: ops.stop_gradient(x) * 2.0),
    "full_like": one(lambda x: ops.zeros_like(x) + x),
    **{
        f"{name} of {label}": one(lambda x, name=name, axis=axis: getattr(ops, name)(x, axis=axis), BOX)
        for name in ["sum", "mean", "max", "min", "prod", "var", "std", "logsumexp", "norm", "any", "all"]
        for label, axis in {"all": None, "the last axis": -1, "two axes": (0, 2)}.items()
    },
    "max with equal elements": one(lambda x: ops.max(ops.concatenate([x, x], 1), 1)),
    "sum that keeps axes": one(lambda x: ops.sum(x, axis=1, keepdims=True), BOX),
    "argmax": one(lambda x: ops.argmax(x, axis=1), BOX),
    "argmin": one(lambda x: ops.argmin(x, axis=-1, keepdims=True), BOX),
    "reshape": one(lambda x: ops.reshape(x, (-1, 5, 3)), BOX),
    "reshape with samples and a rest": one(lambda x: ops.reshape(x, (None, -1)), BOX),
    "expand_dims": one(lambda x: ops.expand_dims(x, (1, -1))),
    "squeeze": one(lambda x: ops.squeeze(x, 1), numbers(4, 1, 3)),
    "transpose": one(lambda x: ops.transpose(x, (2, 0, 1)), BOX),
    "moveaxis": one(lambda x: ops.moveaxis(x, -1, 1), BOX),
    "swapaxes": one(lambda x: ops.swapaxes(x, 1, 2), BOX),
    "broadcast_to": one(lambda x: ops.broadcast_to(x, (2, None, 3))),
    "broadcast_to along an axis": one(lambda x: ops.broadcast_to(x, (None, 6, 3)), numbers(4, 1, 3)),
    "concatenate": Case(lambda *xs: ops.concatenate(xs, -1), (X, numbers(4, 2), POSITIVE), (0, 1, 2)),
    "concatenate of one tensor twice": one(lambda x: ops.concatenate([x, x], 1)),
    "stack": Case(lambda *xs: ops.stack(xs, 1), (X, POSITIVE), (0, 1)),
    "split": one(lambda x: ops.split(x, [1, 3], -1), BOX),
    "split of which one is used": one(lambda x: ops.split(x, 3, 1)[1], BOX),
    "split into one": one(lambda x: ops.split(x, 1, 1), BOX),
    "unstack": one(lambda x: ops.unstack(x, axis=1), BOX),
    "pad": one(lambda x: ops.pad(x, ((0, 0), (1, 2)), constant_values=0.5)),
    "flip": one(lambda x: ops.flip(x, (1, 2)), BOX),
    "roll": one(lambda x: ops.roll(x, (2, -1), (1, 2)), BOX),
    "roll of a flat x": Case(lambda x: ops.roll(x, 2), (X,)),
    "repeat": one(lambda x: ops.repeat(x, 2, 1), BOX),
    "repeat of a flat x": one(lambda x: ops.repeat(x, 3)),
    "tile": one(lambda x: ops.tile(x, (2, 3))),
    "tile with more axes": one(lambda x: ops.tile(x, (2, 1, 3))),
    "getitem": one(lambda x: x[:, 1, None, ::-2], BOX),
    "getitem from behind": one(lambda x: x[..., -2:], BOX),
    "getitem of an element": Case(lambda x: x[2, 1], (X,)),
    "take": Case(lambda x, i: ops.take(x, i, 1), (BOX, whole(6, 2, high=3)), (0,)),
    "take of a flat x": Case(ops.take, (X, whole(6)), (0,)),
    "take of samples": Case(lambda x, i: x[i], (numbers(7, 3), whole(4)), (1,)),
    "take at two axes": Case(lambda x, i, j: x[:, i, j], (BOX, whole(6, high=3), whole(6, high=5) - 5), (0,)),
    "take_along_axis": Case(lambda x, i: ops.take_along_axis(x, i, 1), (X, whole(4, 5, high=3)), (0, 1)),
    "one_hot": one(lambda x: ops.one_hot(x, 4, axis=1), whole(4, 3, high=5)),
    "sort": one(lambda x: ops.sort(x, 1), BOX),
    "argsort": one(lambda x: ops.argsort(x, -1), BOX),
    "top_k": one(lambda x: ops.top_k(x, 2), BOX),
    "cumsum": one(lambda x: ops.cumsum(x, 1), BOX),
    "cumprod": one(lambda x: ops.cumprod(x, 2), BOX),
    "matmul": Case(ops.matmul, (BOX, numbers(4, 5, 2)), (0, 1)),
    "matmul with one matrix": two(ops.matmul, BOX, numbers(5, 2)),
    "matmul that is broadcast": Case(ops.matmul, (numbers(2, 1, 3, 4), numbers(5, 4, 2))),
    "matmul with a vector": two(ops.matmul, BOX, numbers(5)),
    "matmul of a vector": Case(ops.matmul, (numbers(3), numbers(3, 2))),
    "matmul of vectors": Case(ops.matmul, (numbers(3), POSITIVE[0])),
    "dot": two(ops.dot, BOX, numbers(2, 5, 3)),
    "dot with a number": two(ops.dot, BOX, np.float32(3)),
    "tensordot": Case(lambda a, b: ops.tensordot(a, b, ((1, 2), (0, 1))), (BOX, numbers(3, 5, 2)), (0,)),
    "tensordot of outer axes": two(lambda a, b: ops.tensordot(a, b, 0), X, numbers(2)),
    **{
        f"einsum {subscripts}": Case(
            lambda a, b, subscripts=subscripts: ops.einsum(subscripts, a, b),
            (a, b),
            (0, 1) if subscripts[0] in subscripts.partition("->")[0].partition(",")[2] else (0,),
        )
        for subscripts, a, b in [
            ("bthd,bshd->bhts", numbers(4, 3, 2, 5), numbers(4, 6, 2, 5)),
            ("bhts,bshd->bthd", numbers(4, 2, 3, 6), numbers(4, 6, 2, 5)),
            ("abc,cde->abde", BOX, numbers(5, 2, 3)),
            ("aecd,abcd->acbe", numbers(4, 3, 2, 5), numbers(4, 6, 2, 5)),
            ("ab,ab->ab", X, POSITIVE),
            ("ab,ab->", X, POSITIVE),
            ("ab,c->acb", X, numbers(2)),
            ("abc,bd->adc", BOX, numbers(3, 2)),
            ("a...c,cd->a...d", BOX, numbers(5, 2)),
            ("ab,bc", X, numbers(3, 2)),
            ("abc,bd->ad", BOX, numbers(3, 2)),
        ]
    },
    "einsum of one operand": one(lambda x: ops.einsum("abc->ca", x), BOX),
    "dense": Case(ops.dense, (BOX, numbers(5, 2), numbers(2)), (0,)),
    **{
        f"dense with {name}": Case(
            lambda x, kernel, bias, name=name: ops.dense(x, kernel, bias, name),
            (BOX, numbers(5, 2), numbers(2)),
            (0,),
        )
        for name in ("gelu", "leaky_relu", "softmax", "mish", "glu")
    },
    "dropout": one(lambda x: ops.dropout(x, 0.4)),
    "normal_like": one(lambda x: x * ops.normal_like(x, 1.0, 0.5)),
}
