"""Signatures: functions of a model's variables that are saved as graphs, and called by name.

A signature takes arrays by name or in order, and gives arrays by name. Source: TensorFlow's SavedModel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workers.nn import graph_json
from workers.nn.graph import Graph, trace
from workers.nn.lookup import check
from workers.nn.ops.base import as_operand
from workers.nn.saving.graphs import check_held, constants, run
from workers.nn.tensor import Spec, leaves, map_structure

if TYPE_CHECKING:
    from workers.nn.model import Model
    from workers.nn.numerics import Array
    from workers.nn.variables import Variable

DEFAULT = "serving_default"
SERVING = "serve"
"""The tag of what is saved without any."""

Given = Callable[..., Any] | Sequence[Any]
"""A function of tensors that takes what the model does; or such a function and its inputs, as `nn.Input`s."""


@dataclass(frozen=True, slots=True)
class Signature:
    """A function of the saved model's variables, by name in the parts of a model that have these tags."""

    name: str
    tags: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    graph: Graph

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        """The outputs by name, for inputs in their order or by name. ConfigurationError for others."""
        given = dict(zip(self.inputs, args, strict=False)) | kwargs
        count = len(args) + len(kwargs)
        check(
            count == len(given) and given.keys() == {*self.inputs},
            f"signature {self.name!r} takes {', '.join(self.inputs)}, and got {count} inputs"
            + (f" ({', '.join(kwargs)})" if kwargs else ""),
        )
        operands = []
        for name, spec in zip(self.inputs, self.graph.inputs, strict=True):
            array = np.asarray(as_operand(given[name]))
            fits = len(array.shape) == len(spec.shape) and all(
                n in (None, m) for n, m in zip(spec.shape, array.shape, strict=True)
            )
            check(
                fits, f"signature {self.name!r}: {name} has shape {spec.shape}, and {array.shape} was given"
            )
            operands.append(as_operand(array.astype(spec.dtype, copy=False)))
        found = run(self.graph, operands)
        return {name: np.array(value) for name, value in zip(self.outputs, found, strict=True)}

    @classmethod
    def of(cls, model: Model, name: str, given: Given, tags: Sequence[str]) -> Signature:
        """A signature of what the user gave. Raises Untraceable, with the line, and ConfigurationError."""
        function, *inputs = given if isinstance(given, Sequence) else (given,)
        check(callable(function), f"signature {name!r}: {function!r} is no function")
        specs = [map_structure(_spec, each) for each in inputs] or [model.input_spec]
        graph = trace(function, *specs)
        check_held(graph, model)
        alone = ["inputs"] if len(specs) == 1 else [f"input_{i}" for i in range(len(specs))]
        names = [key for spec, name in zip(specs, alone, strict=True) for key in names_of(spec, name)]
        names = names if len({*names}) == len(names) else [f"input_{i}" for i in range(len(names))]
        return cls(name, tuple(tags), tuple(names), tuple(names_of(graph.structure, "output_0")), graph)

    def to_json(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """The document, and by their keys the constants that are too large for it."""
        graph, arrays = graph_json.to_json(self.graph)
        parts = {"tags": list(self.tags), "inputs": list(self.inputs), "outputs": list(self.outputs)}
        return {"name": self.name, **parts, "graph": graph}, arrays

    @classmethod
    def from_json(
        cls, document: Any, arrays: Mapping[str, Any], variables: Mapping[str, Variable]
    ) -> Signature:
        """What `to_json` wrote; ConfigurationError says what is wrong with any other."""
        check(
            isinstance(document, dict)
            and set(document) == {"name", "tags", "inputs", "outputs", "graph"}
            and isinstance(document["name"], str)
            and all(_are_texts(document[key]) for key in ("tags", "inputs", "outputs")),
            "a signature is no JSON object of name, tags, inputs, outputs and graph",
        )
        graph = graph_json.from_json(document["graph"], arrays, variables)
        inputs, outputs = tuple(document["inputs"]), tuple(document["outputs"])
        check(
            len(inputs) == len(graph.inputs) and len(outputs) == len(graph.outputs),
            f"signature {document['name']!r} has other inputs or outputs than its graph",
        )
        return cls(document["name"], tuple(document["tags"]), inputs, outputs, graph)


def all_to_json(signatures: Sequence[Signature]) -> tuple[list[Any], dict[str, Array]]:
    """The documents, and their constants by place and key."""
    documents: list[Any] = []
    arrays: dict[str, Array] = {}
    for i, signature in enumerate(signatures):
        document, found = signature.to_json()
        documents.append(document)
        arrays |= {f"signature_{i}/{key}": array for key, array in found.items()}
    return documents, arrays


def all_from_json(
    documents: Any, arrays: Mapping[str, Any], variables: Mapping[str, Variable]
) -> list[Signature]:
    """What `all_to_json` wrote."""
    check(isinstance(documents, list), "the signatures are no list")
    return [
        Signature.from_json(document, constants(arrays, f"signature_{i}"), variables)
        for i, document in enumerate(documents)
    ]


def _spec(given: Any) -> Spec:
    """The spec of an `nn.Input`, or of an array that is an example, with any number of samples."""
    if isinstance(given, Spec):
        return given
    spec: Spec = as_operand(given).spec
    return Spec((None, *spec.shape[1:]), spec.dtype) if spec.shape else spec


def names_of(structure: Any, alone: str) -> list[str]:
    """Names for the leaves of a structure: a dict's keys, else numbered."""
    if isinstance(structure, dict) and len(leaves(structure)) == len(structure):
        return [str(key) for key in structure]
    count, stem = len(leaves(structure)), alone.partition("_")[0]
    return (
        [alone] if count == 1 and not isinstance(structure, dict) else [f"{stem}_{i}" for i in range(count)]
    )


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)
