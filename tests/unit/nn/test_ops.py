"""Every operation of the registry: gradients, bits, shapes, and what it must not touch."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from tests.unit.nn.op_cases import CASES, Case
from workers import nn
from workers.nn.graph import Graph, trace
from workers.nn.numerics import Array, quiet
from workers.nn.ops.base import FLOATS, OPS, Op, Run, Site, infer
from workers.nn.program import Program
from workers.nn.tensor import Spec, Tensor, leaves
from workers.rng import Streams

each_case = pytest.mark.parametrize("name", CASES)
RANDOM = {"dropout", "normal_like", *(name for name in CASES if "with dropout" in name)}
"""Eager calls draw other numbers than a graph."""


def graph_of_variables(case: Case) -> tuple[Graph, list[Any]]:
    """The case with its floats as variables and the rest as constants, and these operands."""
    operands = [nn.Variable(x) if x.dtype.name in FLOATS else Tensor(x) for x in case.operands]
    return trace(lambda: case.function(*operands)), operands


def graph_of_inputs(case: Case) -> Graph:
    """The case with its operands as inputs, of an unknown number of samples."""
    specs = [
        Spec((None, *x.shape[1:]) if i in case.rows else x.shape, x.dtype.name)
        for i, x in enumerate(case.operands)
    ]
    return trace(lambda given: case.function(*given), specs)


def run(program: Program, arrays: list[Array]) -> list[Array]:
    with quiet():
        return program.forward([], arrays, Run(Streams(1)))


def weights(outputs: list[Array]) -> list[Array | None]:
    """Numbers by which outputs are summed to one; None for those that are no floats."""
    rng = np.random.default_rng(7)
    return [rng.standard_normal(y.shape).astype(y.dtype) if y.dtype.name in FLOATS else None for y in outputs]


def gradients(program: Program, arrays: list[Array]) -> tuple[list[Array], list[Array]]:
    outputs = run(program, arrays)
    kept = [y.copy() for y in outputs]
    found = [np.full_like(x, np.nan) for x in arrays]
    with quiet():
        program.backward(weights(outputs), found)
    return kept, found


def total(outputs: list[Array]) -> float:
    return float(sum((w * y).sum() for w, y in zip(weights(outputs), outputs, strict=True) if w is not None))


def test_every_operation_has_a_case() -> None:
    used = {node.op for case in CASES.values() for node in graph_of_inputs(case).nodes}
    assert used == set(OPS)


@each_case
def test_gradient_equals_finite_differences(name: str) -> None:
    graph, _ = graph_of_variables(CASES[name])
    variables = graph.variables
    program = Program(graph, 1, range(len(variables)), np.float64)
    arrays = [v.array.astype(np.float64) for v in variables]
    _, found = gradients(program, arrays)
    stops = {node.op for node in graph.nodes} & {"stop_gradient"}
    step = 1e-6
    for x, gradient in zip(arrays, found, strict=True):
        for i in np.ndindex(x.shape):
            before = x[i]
            at = []
            for sign in (1, -1):
                x[i] = before + sign * step
                at.append(total(run(program, arrays)))
            x[i] = before
            expected = 0 if stops else (at[0] - at[1]) / (2 * step)
            assert gradient[i] == pytest.approx(expected, rel=1e-6, abs=2e-8), (name, i)


@each_case
def test_results_depend_on_the_operands_alone(name: str) -> None:
    graph, _ = graph_of_variables(CASES[name])
    variables = graph.variables
    program = Program(graph, 1, range(len(variables)))
    arrays = [v.array.copy() for v in variables]
    first = gradients(program, arrays)
    gradients(program, [x[::-1].copy() if x.ndim else x + 1 for x in arrays])
    again = gradients(program, arrays)
    for found, expected in zip([*again[0], *again[1]], [*first[0], *first[1]], strict=True):
        np.testing.assert_array_equal(found, expected)
    for x, v in zip(arrays, variables, strict=True):
        np.testing.assert_array_equal(x, v.array)


@pytest.mark.parametrize("name", sorted(set(CASES) - RANDOM))
def test_an_eager_call_gives_the_bits_of_the_graph_and_touches_nothing(name: str) -> None:
    case = CASES[name]
    graph, operands = graph_of_variables(case)
    sources = graph.variables
    traced = gradients(Program(graph, 1, range(len(sources))), [v.array for v in sources])
    with nn.GradientTape(persistent=True) as tape:
        outputs = leaves(case.function(*operands))
    kept = [y.array.copy() for y in outputs]
    given = weights(kept)
    targets = [y for y, w in zip(outputs, given, strict=True) if w is not None]
    for _ in range(2):
        found = tape.gradient(targets, sources, [w for w in given if w is not None])
        for gradient, expected in zip(found, traced[1], strict=True):
            np.testing.assert_array_equal(0 if gradient is None else gradient.array, expected)
    for y, before, expected in zip(outputs, kept, traced[0], strict=True):
        np.testing.assert_array_equal(before, expected)
        np.testing.assert_array_equal(y.array, before)
    for x, before in zip(operands, case.operands, strict=True):
        np.testing.assert_array_equal(x.array, before)


@each_case
def test_shapes_with_an_unknown_number_of_samples(name: str) -> None:
    case = CASES[name]
    graph = graph_of_inputs(case)
    known = graph.specs()
    for rows in (4, 2):
        operands = [x[:rows] if i in case.rows else x for i, x in enumerate(case.operands)]
        program = Program(graph, rows)
        with quiet():
            found = program.forward(operands, [], Run(Streams(1)))
        eager = [y.array for y in leaves(case.function(*map(Tensor, operands)))]
        for value, y, expected in zip(graph.outputs, found, eager, strict=True):
            spec = known[value]
            assert y.dtype.name == spec.dtype
            assert len(spec.shape) == y.ndim
            assert all(n in (None, m) for n, m in zip(spec.shape, y.shape, strict=True))
            if name not in RANDOM:
                np.testing.assert_array_equal(y, expected)


@each_case
def test_gradients_share_no_memory_and_go_where_they_are_wanted(name: str) -> None:
    graph, _ = graph_of_variables(CASES[name])
    variables = graph.variables
    specs = graph.specs()
    values: list[Array] = [*(v.array for v in variables), *graph.constants]
    for node in graph.nodes:
        inputs = tuple(specs[i] for i in node.inputs)
        needs = tuple(OPS[node.op].differentiable and spec.dtype in FLOATS for spec in inputs)
        op = OPS[node.op](Site(node.attrs, inputs, infer(node.op, node.attrs, inputs), needs))
        operands = [values[i] for i in node.inputs]
        with quiet():
            found = op.forward(Run(Streams(1)), *operands)
            outputs = list(found) if isinstance(found, tuple) else [found]
            if any(needs) and outputs[0].dtype.name in FLOATS:
                check_backward(op, operands, outputs, needs)
        values += outputs


def check_backward(op: Op, operands: list[Array], outputs: list[Array], needs: tuple[bool, ...]) -> None:
    def dy() -> Any:
        given = weights(outputs)
        return given[0] if len(given) == 1 else tuple(given)

    plain = op.backward(dy(), [None] * len(needs))
    copies = [None if each is None else each.copy() for each in plain]
    assert [each is not None for each in plain] == list(needs)
    arrays = [each for each in plain if each is not None]
    assert not any(np.shares_memory(a, b) for a, b in combinations(arrays, 2))
    assert not any(np.shares_memory(a, b) for a in arrays for b in [*operands, *outputs])
    into = [np.full_like(x, np.nan) if needed else None for x, needed in zip(operands, needs, strict=True)]
    placed = op.backward(dy(), into)
    for target, gradient, expected in zip(into, placed, copies, strict=True):
        assert gradient is target
        if target is not None:
            np.testing.assert_array_equal(target, expected)
