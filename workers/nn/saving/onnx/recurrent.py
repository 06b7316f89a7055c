"""Recurrent operations as ONNX's Scan, whose body is one step.

ONNX's own LSTM and GRU know neither masks nor all activations, and order their gates otherwise. In the shape
suffixes: B samples, T time steps, U units, G units times gates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workers.nn.saving.onnx.functions import activate
from workers.nn.saving.onnx.shapes import sliced
from workers.nn.saving.onnx.writer import Refused, scalar_type

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from workers.nn.graph import Node
    from workers.nn.saving.onnx.elements import Translation
    from workers.nn.saving.onnx.writer import Operand, Writer


class _Cell:
    """One step: what the subclasses compute from `z_BG`, the input's product with its bias."""

    def __init__(self, w: Writer, node: Node, recurrent: Operand, bias: Operand | None) -> None:
        self.w = w
        self.recurrent = recurrent
        self.bias = bias
        self.units = recurrent.spec.dims[0]
        self._attrs = node.attrs
        self._dtype = node.outputs[0].dtype

    def input_bias(self) -> str | None:
        """The bias of the input's product."""
        return None if self.bias is None else self.bias.name

    def step(self, z_BG: str, states: Sequence[str]) -> list[str]:
        """In place. The new states."""
        raise NotImplementedError

    def gate(self, value: str, first: int, count: int = 1) -> str:
        """In place. Some of the gates along the last axis."""
        return sliced(self.w, value, -1, first * self.units, (first + count) * self.units)

    def activation(self, value: str) -> str:
        """In place. The activation of the candidate, and of the output."""
        return activate(self.w, self._attrs["activation"], {}, value, self._dtype)

    def recurrent_activation(self, value: str) -> str:
        """In place. The activation of the gates."""
        return activate(self.w, self._attrs["recurrent_activation"], {}, value, self._dtype)

    def mix(self, update: str, candidate: str, state: str) -> str:
        """In place. update * state + (1 - update) * candidate"""
        w = self.w
        return w("Add", candidate, w("Mul", update, w("Sub", state, candidate)))


class _Simple(_Cell):
    def step(self, z_BG: str, states: Sequence[str]) -> list[str]:
        w = self.w
        return [self.activation(w("Add", z_BG, w("MatMul", states[0], self.recurrent)))]


class _LSTM(_Cell):
    def step(self, z_BG: str, states: Sequence[str]) -> list[str]:
        w, (h, c) = self.w, states
        z = w("Add", z_BG, w("MatMul", h, self.recurrent))
        i, f, o = (self.recurrent_activation(self.gate(z, place)) for place in (0, 1, 3))
        g = self.activation(self.gate(z, 2))
        new = w("Add", w("Mul", f, c), w("Mul", i, g))
        return [w("Mul", o, self.activation(new)), new]


class _GRU(_Cell):
    def input_bias(self) -> str | None:
        return None if self.bias is None else self._bias(0)

    def _bias(self, place: int) -> str:
        return self.w("Gather", self.bias, np.asarray(place, np.int64), axis=0)

    def step(self, z_BG: str, states: Sequence[str]) -> list[str]:
        w, h = self.w, states[0]
        inner = w("MatMul", h, self.recurrent)
        if self.bias is not None:
            inner = w("Add", inner, self._bias(1))
        gates = self.recurrent_activation(w("Add", self.gate(z_BG, 0, 2), self.gate(inner, 0, 2)))
        reset = w("Mul", self.gate(gates, 1), self.gate(inner, 2))
        candidate = self.activation(w("Add", self.gate(z_BG, 2), reset))
        return [self.mix(self.gate(gates, 0), candidate, h)]


class _GRUResetBefore(_Cell):
    def step(self, z_BG: str, states: Sequence[str]) -> list[str]:
        w, h = self.w, states[0]
        kernel = self.recurrent.name
        inner = w("MatMul", h, self.gate(kernel, 0, 2))
        gates = self.recurrent_activation(w("Add", self.gate(z_BG, 0, 2), inner))
        reset = w("MatMul", w("Mul", self.gate(gates, 1), h), self.gate(kernel, 2))
        candidate = self.activation(w("Add", self.gate(z_BG, 2), reset))
        return [self.mix(self.gate(gates, 0), candidate, h)]


def _recurrent(cell_type: type[_Cell]) -> Callable[..., list[str]]:
    def translate(w: Writer, node: Node, x: Sequence[Operand]) -> list[str]:
        attrs, rest = node.attrs, iter(x[3:])
        if attrs["recurrent_dropout"]:
            raise Refused("it drops parts of the state at random")
        bias = next(rest) if attrs["use_bias"] else None
        mask = next(rest) if attrs["masked"] else None
        cell = cell_type(w, node, x[2], bias)
        z_BTG = w("MatMul", x[0], x[1])
        if (vector := cell.input_bias()) is not None:
            z_BTG = w("Add", z_BTG, vector)
        num_states = len(node.outputs) - 1
        if attrs["initial"]:
            states = [each.name for each in rest]
        else:
            shape = w("Concat", w.shape_of(x[0], [0]), w.ints(cell.units), axis=0)
            states = [w("Expand", 0.0, shape, dtype=node.outputs[0].dtype)] * num_states
        *states, sequence = _scan(w, node, cell, z_BTG, mask, states)
        if not attrs["return_sequences"]:
            sequence = w("Gather", sequence, np.asarray(-1, np.int64), axis=1)
        return [sequence, *states[:num_states]]

    return translate


def _scan(
    w: Writer, node: Node, cell: _Cell, z_BTG: str, mask: Operand | None, states: Sequence[str]
) -> list[str]:
    """In place. The final states (and, behind them, whether a step counted), and what each step shows."""
    from onnx import TensorProto, helper

    attrs, dtype = node.attrs, scalar_type(node.outputs[0].dtype)
    # A state that was given is not shown before the first step that counts.
    hides = mask is not None and attrs["initial"] and not attrs["zero_output_for_mask"]
    initial = list(states)
    if hides:
        shape = w("Concat", w("Shape", z_BTG, start=0, end=1), w.ints(1), axis=0)
        initial.append(w("Expand", np.zeros((), bool), shape))
    before = [w.fresh("state") for _ in initial]
    z_BG, counts = w.fresh("input"), w.fresh("counts")
    with w.body() as nodes:
        new = cell.step(z_BG, before[: len(states)])
        shown = new[0]
        if mask is not None:
            counts_B1 = w("Unsqueeze", counts, w.ints(1))
            new = [w("Where", counts_B1, after, kept) for after, kept in zip(new, before, strict=False)]
            shown = new[0]
            seen = counts_B1
            if hides:
                seen = w("Or", before[-1], counts_B1)
                new.append(seen)
            if hides or attrs["zero_output_for_mask"]:
                shown = w("Where", seen, shown, 0, dtype=node.outputs[0].dtype)
        outputs = [w("Identity", each) for each in (*new, shown)]

    def described(name: str, of: int, shape: Sequence[int | str | None]) -> Any:
        return helper.make_tensor_value_info(name, of, shape)

    of_states = [(dtype, cell.units)] * len(states) + [(TensorProto.BOOL, 1)] * hides
    body = helper.make_graph(
        nodes,
        "step",
        [described(name, of, (None, n)) for name, (of, n) in zip(before, of_states, strict=True)]
        + [described(z_BG, dtype, (None, None))]
        + ([] if mask is None else [described(counts, TensorProto.BOOL, (None,))]),
        [
            described(name, of, (None, n))
            for name, (of, n) in zip(outputs, [*of_states, (dtype, cell.units)], strict=True)
        ],
    )
    scanned = [z_BTG] if mask is None else [z_BTG, mask.name]
    return w.several(
        "Scan",
        len(outputs),
        *initial,
        *scanned,
        body=body,
        num_scan_inputs=len(scanned),
        scan_input_axes=[1] * len(scanned),
        scan_input_directions=[int(attrs["go_backwards"])] * len(scanned),
        scan_output_axes=[1],
    )


TRANSLATIONS: dict[str, Translation] = {
    "simple_rnn": _recurrent(_Simple),
    "lstm": _recurrent(_LSTM),
    "gru": _recurrent(_GRU),
    "gru_reset_before": _recurrent(_GRUResetBefore),
}
