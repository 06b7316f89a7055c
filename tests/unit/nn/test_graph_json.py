"""A graph is stored as JSON and read without trust: what comes back is the same, or is refused."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import ConfigurationError
from tests.unit.nn.op_cases import CASES
from tests.unit.nn.test_ops import each_case, graph_of_inputs
from workers import nn
from workers.nn.graph import Graph, trace
from workers.nn.graph_json import from_json, to_json
from workers.nn.numerics import quiet
from workers.nn.ops.base import Run
from workers.nn.program import Program
from workers.nn.tensor import Spec
from workers.rng import Streams


def through_text(graph: Graph) -> Graph:
    document, arrays = to_json(graph)
    return from_json(json.loads(json.dumps(document)), arrays)


@each_case
def test_a_graph_read_back_gives_the_same_bits(name: str) -> None:
    case = CASES[name]
    graph = graph_of_inputs(case)
    read = through_text(graph)
    assert to_json(read)[0] == to_json(graph)[0]
    found = []
    for each in (graph, read):
        with quiet():
            found.append(Program(each, 4).forward(case.operands, [], Run(Streams(1))))
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


class Everything(nn.Layer):
    """Variables, an assignment, constants small and large, and a structure of outputs."""

    def build(self, input_shape: Any) -> None:
        self.kernel = self.add_weight((input_shape[-1], 2), name="kernel")
        self.mean = self.add_weight((2,), "zeros", trainable=False, name="mean")
        self.table = nn.ops.convert_to_tensor(np.arange(4000, dtype=np.int64).reshape(2, 2000))

    def call(self, inputs: Any, training: bool = False) -> Any:
        y = nn.ops.gelu(inputs @ self.kernel)
        self.mean.assign(nn.ops.mean(y, axis=0))
        wide = nn.ops.matmul(y, nn.ops.cast(self.table, "float32"))
        return {"y": (y, [y * 0.5 - self.mean]), "wide": wide, "none": None}


def everything() -> Graph:
    layer = Everything()
    layer.build((None, 3))
    layer.named_variables()
    return trace(lambda x: layer.call(x, training=True), Spec((None, 3)))


DOCUMENT, ARRAYS = to_json(everything())


def test_all_parts_of_a_graph_are_kept() -> None:
    read = from_json(json.loads(json.dumps(DOCUMENT)), ARRAYS)
    assert [(v.path, v.trainable) for v in read.variables] == [("kernel", True), ("mean", False)]
    assert read.structure == {"y": (0, [1]), "wide": 2, "none": None}
    assert len(read.assignments) == 1
    assert ["array" in each for each in DOCUMENT["constants"]] == [True, False]
    assert [(n.op, n.outputs) for n in read.nodes] == [(n.op, n.outputs) for n in everything().nodes]


def test_a_graph_takes_the_variables_of_a_model() -> None:
    graph = everything()
    own = {v.path: v for v in graph.variables}
    read = from_json(to_json(graph)[0], ARRAYS, own)
    assert all(a is b for a, b in zip(read.variables, graph.variables, strict=True))
    with pytest.raises(ConfigurationError, match="the model has no variable 'kernel'"):
        from_json(DOCUMENT, ARRAYS, {"mean": own["mean"]})
    with pytest.raises(ConfigurationError, match=r"variable 'mean' is .*, not"):
        from_json(DOCUMENT, ARRAYS, own | {"mean": nn.Variable(np.zeros(3))})


def changed(*path: Any, to: Any) -> Any:
    document = copy.deepcopy(DOCUMENT)
    at: Any = document
    for each in path[:-1]:
        at = at[each]
    at[path[-1]] = to
    return document


def node(op: str) -> int:
    return next(i for i, each in enumerate(DOCUMENT["nodes"]) if each["op"] == op)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "the graph is no JSON object"),
        ({}, "the graph has the fields"),
        (changed("format", to="2"), "format is '2'"),
        (changed("inputs", to={}), "inputs are no list"),
        (changed("inputs", 0, "shape", to=[-1]), r"input 0: \[-1\] is no shape"),
        (changed("inputs", 0, "shape", to=[2**31 - 1] * 2), "input 0: .* is no shape"),
        (changed("inputs", 0, "dtype", to="object"), "input 0: 'object' is no dtype"),
        (changed("variables", 0, "path", to=""), "variable 0: '' is no path"),
        (changed("variables", 0, "shape", to=[None, 2]), "variable 0: .* is no shape"),
        (changed("variables", 1, "path", to="kernel"), "two variables"),
        (changed("variables", 1, "trainable", to=1), "variable 1: trainable is 1"),
        (changed("constants", 1, "data", to="A"), "constant 1: its data is no base64"),
        (changed("constants", 1, "data", to=""), "constant 1: 0 bytes, not 4"),
        (changed("nodes", 0, "op", to="eval"), "node 0: unknown operation 'eval'"),
        (changed("nodes", 0, "inputs", to=[0]), "node 0, matmul: 1 operands, not 2 to 2"),
        (changed("nodes", 0, "inputs", to=[0, 99]), "there is no value 99 before it"),
        (changed("nodes", 0, "inputs", to=[0, True]), "there is no value True before it"),
        (changed("nodes", 0, "inputs", to=[1, 0]), "node 0, matmul: matmul: shapes"),
        (changed("nodes", 0, "attrs", to={"x": 1}), r"attrs of node 0, matmul has the fields \['x'\]"),
        (changed("nodes", 0, "outputs", 0, "shape", to=[None, 3]), "node 0, matmul: it gives"),
        (changed("nodes", node("mean"), "attrs", "axis", to="x"), "mean: axis cannot be 'x'"),
        (changed("nodes", node("mean"), "attrs", "axis", to=2), "axis 2 is out of range"),
        (changed("outputs", to=[0]), "does not hold each output once"),
        (changed("structure", to={"set": [0, 1, 2]}), "structure: "),
        (changed("assignments", 0, to=[0, 0]), "assignment 0: .* is not the shape of 'kernel'"),
        (changed("assignments", to=DOCUMENT["assignments"] * 2), "assigned to twice"),
    ],
)
def test_a_damaged_graph_is_refused_in_one_line(document: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        from_json(document, ARRAYS)
    assert "\n" not in str(caught.value)


def test_a_structure_of_no_end_is_refused() -> None:
    deep: Any = 0
    for _ in range(100):
        deep = {"list": [deep]}
    with pytest.raises(ConfigurationError, match="too deep"):
        from_json(changed("structure", to=deep), ARRAYS)


def test_a_missing_or_other_array_is_refused() -> None:
    large = trace(lambda x: x + np.ones(2000, np.float32), Spec((None, 2000)))
    document, arrays = to_json(large)
    assert list(arrays) == ["constant_0"]
    with pytest.raises(ConfigurationError, match="there is no array 'constant_0'"):
        from_json(document, {})
    with pytest.raises(ConfigurationError, match="constant 0: the array is"):
        from_json(document, {"constant_0": np.ones(2000)})


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["float32", "int32", "...", "softmax", "ab,bc->ac"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
DOCUMENTS = [to_json(graph_of_inputs(case)) for case in CASES.values()]


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all parts of a document."""
    items: Any = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    found = [] if not prefix else [prefix]
    for key, each in items:
        found += paths(each, (*prefix, key))
    return found


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_any_change_of_a_document_is_read_or_refused(data: st.DataObject) -> None:
    original, arrays = data.draw(st.sampled_from(DOCUMENTS))
    document = copy.deepcopy(original)
    path = data.draw(st.sampled_from(paths(document)))
    at: Any = document
    for each in path[:-1]:
        at = at[each]
    at[path[-1]] = data.draw(JSON)
    with suppress(ConfigurationError):
        read = from_json(document, arrays)
        assert to_json(read)[0] == document or path[-1] == "data"
