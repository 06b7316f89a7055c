"""A model as what it computes: traced graphs, and the model that they are again without its code.

The document holds the graph of a call, one for training (with dropout, added losses, and what batch
normalization assigns) and one without; and the graphs of signatures, functions of the model's variables that
are called by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from workers.nn import graph_json
from workers.nn.engine import traced
from workers.nn.layers.base import current_call
from workers.nn.lookup import check
from workers.nn.model import Model
from workers.nn.ops.base import OPS, apply
from workers.nn.tensor import Spec, Tensor, leaves, map_structure

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from workers.nn.graph import Graph
    from workers.nn.layers.base import Layer
    from workers.nn.numerics import Array
    from workers.nn.variables import Variable

_PARTS = {"outputs", "masks", "losses", "metrics"}


@dataclass(frozen=True, slots=True)
class Graphs:
    """What a model computes with and without training, and the structure of its inputs by their places."""

    train: Graph
    evaluate: Graph
    inputs: Any

    @classmethod
    def of(cls, model: Model) -> Graphs:
        """The graphs of a model that is built.

        Raises Untraceable, with the line, for code that asks for a tensor's value.
        """
        if isinstance(model, Revived):
            return model.graphs
        places = iter(range(len(leaves(model.input_spec))))
        found = cls(
            traced(model, training=True),
            traced(model, training=False),
            map_structure(lambda _: next(places), model.input_spec),
        )
        for graph in (found.train, found.evaluate):
            check_held(graph, model)
        return found

    def to_json(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """The document, and by their names the constants that are too large for it."""
        document: dict[str, Any] = {"inputs": graph_json.structure_to_json(self.inputs)}
        arrays: dict[str, Array] = {}
        for name, graph in (("train", self.train), ("evaluate", self.evaluate)):
            document[name], constants = graph_json.to_json(graph)
            arrays |= {f"{name}/{key}": array for key, array in constants.items()}
        return document, arrays

    @classmethod
    def from_json(cls, document: Any, arrays: Mapping[str, Any], variables: Mapping[str, Variable]) -> Graphs:
        """What `to_json` wrote, over these variables; ConfigurationError says what is wrong otherwise."""
        check(isinstance(document, dict) and set(document) == {"inputs", "train", "evaluate"}, "no graphs")
        train, evaluate = (
            graph_json.from_json(document[name], constants(arrays, name), variables)
            for name in ("train", "evaluate")
        )
        for graph in (train, evaluate):
            check(
                isinstance(graph.structure, dict)
                and set(graph.structure) == _PARTS
                and isinstance(graph.structure["masks"], list)
                and len(graph.structure["masks"]) == len(leaves(graph.structure["outputs"]))
                and isinstance(graph.structure["metrics"], dict),
                "a graph does not give outputs, masks, losses and metrics",
            )
        check(train.inputs == evaluate.inputs, "the graphs take unlike inputs")
        inputs = graph_json.structure_from_json(document["inputs"], len(evaluate.inputs), "input")
        return cls(train, evaluate, inputs)


def constants(arrays: Mapping[str, Any], name: str) -> dict[str, Array]:
    """The constants of the graph of a name, from those of all."""
    prefix = f"{name}/"
    return {k.removeprefix(prefix): np.asarray(a) for k, a in arrays.items() if k.startswith(prefix)}


def check_held(graph: Graph, model: Model) -> None:
    """Raise ConfigurationError for a variable of a graph that no layer of the model holds."""
    held = {id(variable) for variable in model.weights}
    for variable in graph.variables:
        check(
            id(variable) in held,
            f"variable {variable.name!r} is used, but no layer of the model holds it: make it an attribute",
        )


def run(graph: Graph, inputs: Sequence[Any], *, training: bool = False) -> list[Any]:
    """The outputs of a graph, operation by operation: on arrays, or traced into another graph.

    With `training`, variables are assigned what they become after a step.
    """
    values: list[Any] = [*inputs, *graph.variables, *(Tensor(array) for array in graph.constants)]
    for node in graph.nodes:
        attrs = dict(node.attrs)
        if OPS[node.op].random:
            del attrs["stream"]  # whoever traces it counts anew, in the same order
        found = apply(node.op, *(values[place] for place in node.inputs), **attrs)
        values += found if isinstance(found, tuple) else (found,)
    if training:
        for place, number in graph.assignments:
            graph.variables[place].assign(values[number])
    return [values[place] for place in graph.outputs]


def as_inputs(graph: Graph, given: Sequence[Any], what: str) -> list[Any]:
    """Tensors in the dtypes of a graph's inputs. ConfigurationError for another number or other shapes."""
    check(len(given) == len(graph.inputs), f"{what} has {len(graph.inputs)} inputs, and got {len(given)}")
    for tensor, spec in zip(given, graph.inputs, strict=True):
        _check_fits(tensor.spec, spec, what)
    return [
        tensor if tensor.spec.dtype == spec.dtype else apply("cast", tensor, dtype=spec.dtype)
        for tensor, spec in zip(given, graph.inputs, strict=True)
    ]


class Revived(Model):
    """A model that was loaded without its classes: it calls, trains and is saved again, by its graphs.

    `written` is what was written of the model itself, and is written again.
    """

    def __init__(
        self, graphs: Graphs, variables: Mapping[str, Variable], written: Any, name: str | None = None
    ) -> None:
        super().__init__(name=name)
        self.graphs = graphs
        self.written_as = written
        self._variables = dict(variables)
        self._built_with = map_structure(lambda place: graphs.evaluate.inputs[place].shape, graphs.inputs)
        self.built = True

    def children(self) -> Iterator[tuple[str, Layer | Variable]]:
        """The variables by path; there are no layers any more."""
        return iter(self._variables.items())

    def named_variables(self) -> dict[str, Variable]:
        """All variables by path, in the order of the model that was saved."""
        for path, variable in self._variables.items():
            variable.path = path
        return dict(self._variables)

    @property
    def input_spec(self) -> Any:
        """A structure of the specs of what goes in."""
        return map_structure(lambda place: self.graphs.evaluate.inputs[place], self.graphs.inputs)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """What the saved model gave; one that was frozen since computes as without training."""
        training = training and self.trainable
        graph = self.graphs.train if training else self.graphs.evaluate
        found = run(graph, as_inputs(graph, leaves(inputs), "the model"), training=training)
        added = current_call()
        if added is not None:
            added.losses += [found[place] for place in leaves(graph.structure["losses"])]
            added.metrics += [(name, found[place]) for name, place in graph.structure["metrics"].items()]
        outputs = map_structure(lambda place: found[place], graph.structure["outputs"])
        for output, place in zip(leaves(outputs), graph.structure["masks"], strict=True):
            if place is not None:
                output.mask = found[place]
        return outputs


def _check_fits(found: Spec, wanted: Spec, what: str) -> None:
    fits = len(found.shape) == len(wanted.shape) and all(
        a == b or a is None or b is None for a, b in zip(found.shape, wanted.shape, strict=True)
    )
    if not fits:
        raise ConfigurationError(f"{what}'s input is {wanted.shape}, and {found.shape} was given")
