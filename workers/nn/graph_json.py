"""A graph as a JSON document, and back without trust in the document.

    {"format": "holdfast-graph-1",
     "inputs": [{"shape": [null, 4], "dtype": "float32"}],
     "variables": [{"path": "dense/kernel", "shape": [4, 2], "dtype": "float32", "trainable": true}],
     "constants": [{"shape": [], "dtype": "float32", "data": "AAAAPw=="}],
     "nodes": [{"op": "matmul", "attrs": {}, "inputs": [0, 1], "outputs": [{"shape": [null, 2], ...}]}],
     "outputs": [3], "structure": 0, "assignments": []}

Values are numbered as in `workers.nn.graph`. A constant is little-endian and in base64; a large one has
"array" instead of "data", its key in the arrays that go with the document. In "structure", a place in
"outputs" is a leaf; {"list": [...]}, {"tuple": [...]} and {"dict": {...}} hold others.
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from workers.nn.graph import Graph, Node
from workers.nn.lookup import check
from workers.nn.ops.attributes import DTYPES, flag, text, whole
from workers.nn.ops.base import OPS, infer
from workers.nn.tensor import Spec
from workers.nn.variables import Variable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers.nn.numerics import Array

_FORMAT = "holdfast-graph-1"
_INLINE_BYTES = 4096
_MAX_AXES = 32
_MAX_ELEMENTS = 2**40
_MAX_DEPTH = 32
_BAD_ATTRIBUTES = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What an operation's `infer` may raise for attributes of the right kind that make no sense together."""


def to_json(graph: Graph) -> tuple[dict[str, Any], dict[str, Array]]:
    """The document, and by their keys the constants that are too large for it."""
    arrays: dict[str, Array] = {}
    constants = []
    for i, constant in enumerate(graph.constants):
        entry = _of_spec(Spec(constant.shape, constant.dtype.name))
        if constant.nbytes <= _INLINE_BYTES:
            little = constant.astype(constant.dtype.newbyteorder("<"))
            entry["data"] = base64.b64encode(little.tobytes()).decode("ascii")
        else:
            entry["array"] = f"constant_{i}"
            arrays[entry["array"]] = constant
        constants.append(entry)
    document = {
        "format": _FORMAT,
        "inputs": [_of_spec(spec) for spec in graph.inputs],
        "variables": [
            {"path": v.path, **_of_spec(v.spec), "trainable": v.trainable} for v in graph.variables
        ],
        "constants": constants,
        "nodes": [
            {
                "op": node.op,
                "attrs": dict(node.attrs),
                "inputs": list(node.inputs),
                "outputs": [_of_spec(spec) for spec in node.outputs],
            }
            for node in graph.nodes
        ],
        "outputs": list(graph.outputs),
        "structure": structure_to_json(graph.structure),
        "assignments": [list(each) for each in graph.assignments],
    }
    return document, arrays


def from_json(
    document: Any, arrays: Mapping[str, Array], variables: Mapping[str, Variable] | None = None
) -> Graph:
    """The graph of a document that need not be trusted, with these variables by path, or new ones of zeros.

    Raises ConfigurationError that says which part is at fault.
    """
    fields = _fields(
        document,
        "the graph",
        {"format", "inputs", "variables", "constants", "nodes", "outputs", "structure", "assignments"},
    )
    check(fields["format"] == _FORMAT, f"the graph's format is {_short(fields['format'])}, not {_FORMAT!r}")
    inputs = [_spec(each, f"input {i}") for i, each in enumerate(_items(fields, "inputs"))]
    held = [_variable(each, i, variables) for i, each in enumerate(_items(fields, "variables"))]
    constants = [_constant(each, i, arrays) for i, each in enumerate(_items(fields, "constants"))]
    check(len({v.path for v in held}) == len(held), "two variables of the graph have one path")
    specs = [
        *inputs,
        *(variable.spec for variable in held),
        *(Spec(each.shape, each.dtype.name) for each in constants),
    ]
    nodes = []
    for i, each in enumerate(_items(fields, "nodes")):
        node = _node(each, i, specs)
        nodes.append(node)
        specs += node.outputs
    outputs = _places(fields["outputs"], "outputs", len(specs))
    structure = structure_from_json(fields["structure"], len(outputs))
    assignments = [_assignment(each, i, held, specs) for i, each in enumerate(_items(fields, "assignments"))]
    check(len({place for place, _ in assignments}) == len(assignments), "a variable is assigned to twice")
    return Graph(inputs, held, constants, nodes, outputs, structure, assignments)


def structure_from_json(value: Any, count: int, what: str = "output") -> Any:
    """What `structure_to_json` wrote of a structure that holds the numbers below `count` once, in order.

    Raises ConfigurationError for any other.
    """
    places: list[int] = []
    structure = _structure(value, places, 0)
    check(places == list(range(count)), f"the structure does not hold each {what} once, in order")
    return structure


def _of_spec(spec: Spec) -> dict[str, Any]:
    return {"shape": list(spec.shape), "dtype": spec.dtype}


def structure_to_json(structure: Any) -> Any:
    """A structure of tuples, lists and dicts, whose leaves are numbers, as JSON values."""
    if isinstance(structure, dict):
        return {"dict": {key: structure_to_json(each) for key, each in structure.items()}}
    if isinstance(structure, list | tuple):
        kind = "tuple" if isinstance(structure, tuple) else "list"
        return {kind: [structure_to_json(each) for each in structure]}
    return structure


def _fields(value: Any, what: str, names: set[str]) -> dict[str, Any]:
    check(isinstance(value, dict), f"{what} is no JSON object: {_short(value)}")
    check(
        set(value) == names, f"{what} has the fields {_short(sorted(map(str, value)))}, not {sorted(names)}"
    )
    found: dict[str, Any] = value
    return found


def _items(fields: Mapping[str, Any], name: str) -> list[Any]:
    value = fields[name]
    check(isinstance(value, list), f"the graph's {name} are no list: {_short(value)}")
    found: list[Any] = value
    return found


def _shape_and_dtype(value: Mapping[str, Any], what: str, *, known: bool) -> Spec:
    shape, dtype = value["shape"], value["dtype"]
    check(isinstance(shape, list) and len(shape) <= _MAX_AXES, f"{what}: {_short(shape)} is no shape")
    check(
        all((n is None and not known) or (whole(n) and n >= 0) for n in shape)
        and math.prod(n for n in shape if n is not None) <= _MAX_ELEMENTS,
        f"{what}: {_short(shape)} is no shape",
    )
    check(isinstance(dtype, str) and dtype in DTYPES, f"{what}: {_short(dtype)} is no dtype")
    return Spec(tuple(shape), dtype)


def _spec(value: Any, what: str) -> Spec:
    return _shape_and_dtype(_fields(value, what, {"shape", "dtype"}), what, known=False)


def _variable(value: Any, i: int, variables: Mapping[str, Variable] | None) -> Variable:
    what = f"variable {i}"
    fields = _fields(value, what, {"path", "shape", "dtype", "trainable"})
    spec = _shape_and_dtype(fields, what, known=True)
    path, trainable = fields["path"], fields["trainable"]
    check(text(path) and path != "", f"{what}: {_short(path)} is no path")
    check(flag(trainable), f"{what}: trainable is {_short(trainable)}")
    if variables is None:
        variable = Variable("zeros", spec.dims, spec.dtype, trainable, path)
    else:
        check(path in variables, f"{what}: the model has no variable {_short(path)}")
        variable = variables[path]
        check(variable.spec == spec, f"variable {path!r} is {_of_spec(variable.spec)}, not {_of_spec(spec)}")
    return variable


def _constant(value: Any, i: int, arrays: Mapping[str, Array]) -> Array:
    what = f"constant {i}"
    kind = "array" if isinstance(value, dict) and "array" in value else "data"
    fields = _fields(value, what, {"shape", "dtype", kind})
    spec = _shape_and_dtype(fields, what, known=True)
    content = fields[kind]
    check(isinstance(content, str), f"{what}: {kind} is no string")
    if kind == "array":
        check(content in arrays, f"{what}: there is no array {_short(content)}")
        array = arrays[content]
        found = Spec(array.shape, array.dtype.name)
        check(found == spec, f"{what}: the array is {_of_spec(found)}, not {_of_spec(spec)}")
        return array
    dtype = np.dtype(spec.dtype)
    try:
        data = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigurationError(f"{what}: its data is no base64: {error}") from error
    nbytes = math.prod(spec.dims) * dtype.itemsize
    check(len(data) == nbytes, f"{what}: {len(data)} bytes, not {nbytes}")
    return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype).reshape(spec.dims)


def _node(value: Any, i: int, specs: Sequence[Spec]) -> Node:
    fields = _fields(value, f"node {i}", {"op", "attrs", "inputs", "outputs"})
    name, attrs = fields["op"], fields["attrs"]
    check(isinstance(name, str) and name in OPS, f"node {i}: unknown operation {_short(name)}")
    what, op = f"node {i}, {name}", OPS[name]
    inputs = _places(fields["inputs"], f"the inputs of {what}", len(specs))
    least, most = op.arity
    check(least <= len(inputs) <= most, f"{what}: {len(inputs)} operands, not {least} to {most}")
    kinds = {**op.attributes, **({"stream": whole} if op.random else {})}
    for key, attribute in _fields(attrs, f"attrs of {what}", set(kinds)).items():
        check(kinds[key](attribute), f"{what}: {key} cannot be {_short(attribute)}")
    check(isinstance(fields["outputs"], list), f"{what}: its outputs are no list")
    stated = [_spec(each, f"output {j} of {what}") for j, each in enumerate(fields["outputs"])]
    try:
        found = infer(name, attrs, [specs[place] for place in inputs])
    except ConfigurationError as error:
        raise ConfigurationError(f"{what}: {error}") from error
    except _BAD_ATTRIBUTES as error:
        raise ConfigurationError(f"{what}: its attributes or operands do not fit: {error}") from error
    check(list(found) == stated, f"{what}: it gives {_short([*map(_of_spec, found)])}, not what is stated")
    return Node(name, attrs, tuple(inputs), len(specs), found)


def _places(value: Any, what: str, count: int) -> list[int]:
    """Numbers of values that are there already."""
    check(isinstance(value, list), f"{what} are no list: {_short(value)}")
    for each in value:
        check(whole(each) and 0 <= each < count, f"{what}: there is no value {_short(each)} before it")
    return list(value)


def _structure(value: Any, places: list[int], depth: int) -> Any:
    """The structure; the places in it are appended to `places`."""
    check(depth <= _MAX_DEPTH, "the structure of the outputs is too deep")
    if value is None:
        return None
    if whole(value):
        places.append(value)
        return value
    check(isinstance(value, dict) and len(value) == 1, f"structure: {_short(value)} is none")
    ((kind, content),) = value.items()
    if kind == "dict" and isinstance(content, dict):
        return {key: _structure(each, places, depth + 1) for key, each in content.items()}
    check(kind in ("list", "tuple") and isinstance(content, list), f"structure: {_short(value)} is none")
    items = [_structure(each, places, depth + 1) for each in content]
    return tuple(items) if kind == "tuple" else items


def _assignment(value: Any, i: int, variables: Sequence[Variable], specs: Sequence[Spec]) -> tuple[int, int]:
    pair = _places(value, f"assignment {i}", len(specs))
    check(len(pair) == 2 and pair[0] < len(variables), f"assignment {i}: {_short(value)} is none")
    place, number = pair
    variable, shape = variables[place], specs[number].shape
    check(shape == variable.shape, f"assignment {i}: {shape} is not the shape of {variable.path!r}")
    return place, number


def _short(value: Any) -> str:
    """What was found, in a few words."""
    found = repr(value)
    return found if len(found) <= 80 else f"{found[:77]}..."
