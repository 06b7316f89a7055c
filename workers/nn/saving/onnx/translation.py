"""A traced graph as an ONNX model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storage.errors import ConfigurationError
from workers.nn.saving.onnx import elements, layers, recurrent, shapes
from workers.nn.saving.onnx.writer import Operand, Refused, Writer, scalar_type

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.nn.graph import Graph
    from workers.nn.tensor import Spec

TRANSLATIONS = {
    **elements.TRANSLATIONS,
    **shapes.TRANSLATIONS,
    **layers.TRANSLATIONS,
    **recurrent.TRANSLATIONS,
}
"""By operation, what makes nodes of it; others have no counterpart."""


def translated(
    graph: Graph,
    input_names: Sequence[str],
    output_names: Sequence[str],
    layers_of: Sequence[str],
    *,
    name: str,
    opset: int,
) -> Any:
    """The ONNX model of a graph; `layers_of` says for each node which layers called it.

    What the outputs do not depend on is left out. ConfigurationError for an operation that has no
    counterpart.
    """
    from onnx import helper

    writer = Writer()
    inputs = [writer.reserve(each) for each in input_names]
    outputs = [writer.reserve(each) for each in output_names]
    needed = _needed(graph)
    values: dict[int, str] = dict(enumerate(inputs))
    for i, variable in enumerate(graph.variables, graph.first_variable):
        if i in needed:
            values[i] = writer.initializer(variable.path, variable.numpy())
    for i, constant in enumerate(graph.constants, graph.first_constant):
        if i in needed:
            values[i] = writer.constant(constant)
    specs = graph.specs()
    for node, layer in zip(graph.nodes, layers_of, strict=True):
        if needed.isdisjoint(range(node.first, node.first + len(node.outputs))):
            continue
        writer.label = layer
        operands = [Operand(values[place], specs[place]) for place in node.inputs]
        where = f"operation {node.op!r}" + (f" of layer {layer!r}" if layer else "")
        if node.op not in TRANSLATIONS:
            raise ConfigurationError(f"{where} cannot be exported: ONNX has no such operation")
        try:
            found = TRANSLATIONS[node.op](writer, node, operands)
        except Refused as exc:
            raise ConfigurationError(f"{where} cannot be exported: {exc}") from exc
        for i, value in enumerate([found] if isinstance(found, str) else found):
            values[node.first + i] = value
    writer.label = ""
    for output, place in zip(outputs, graph.outputs, strict=True):
        writer.add(helper.make_node("Identity", [values[place]], [output]))
    described = helper.make_graph(
        writer.nodes,
        name,
        [_described(each, spec, "samples") for each, spec in zip(inputs, graph.inputs, strict=True)],
        [_described(each, specs[i], None) for each, i in zip(outputs, graph.outputs, strict=True)],
        list(writer.initializers.values()),
    )
    versions = [helper.make_opsetid("", opset)]
    return helper.make_model(
        described,
        opset_imports=versions,
        ir_version=helper.find_min_ir_version_for(versions),
        producer_name="holdfast",
    )


def _needed(graph: Graph) -> set[int]:
    """The values that the outputs depend on."""
    needed = set(graph.outputs)
    for node in reversed(graph.nodes):
        if not needed.isdisjoint(range(node.first, node.first + len(node.outputs))):
            needed.update(node.inputs)
    return needed


def _described(name: str, spec: Spec, unknown: str | None) -> Any:
    from onnx import helper

    shape = [unknown if n is None else n for n in spec.shape]
    return helper.make_tensor_value_info(name, scalar_type(spec.dtype), shape)
