"""The graph of objects in a TensorFlow checkpoint: which attribute of which object has which name. Pure.

Source: tensorflow/core/protobuf/trackable_object_graph.proto.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from storage.formats.protobuf import messages, parse, signed, text, written

if TYPE_CHECKING:
    from storage.formats.protobuf import Message

VALUE = "VARIABLE_VALUE"


@dataclass(frozen=True, slots=True)
class Node:
    """An object: its attributes' objects, by name; the names of tensors that it holds; optimizer slots."""

    children: dict[str, int]
    tensors: dict[str, str]
    """The tensors' names in the checkpoint by their own, which is `VALUE` for a variable."""
    slots: dict[tuple[int, str], int]
    """By (variable, slot's name), the objects that hold an optimizer's state."""
    name: str = ""
    """The variable's own name, where it is one: no part of a path."""


@dataclass(frozen=True, slots=True)
class ObjectGraph:
    """Objects by number; 0 is the root."""

    nodes: tuple[Node, ...]

    @classmethod
    def parse(cls, data: bytes) -> ObjectGraph:
        """What a `TrackableObjectGraph` says. Raises ValueError if it is damaged."""
        nodes = tuple(_node(each) for each in messages(parse(data), 1))
        if not nodes:
            raise ValueError("it has no objects")
        for node in nodes:
            named = [*node.children.values(), *node.slots.values(), *(slot[0] for slot in node.slots)]
            if any(not 0 <= number < len(nodes) for number in named):
                raise ValueError("it names objects that it does not have")
        return cls(nodes)

    def written(self) -> bytes:
        """As a `TrackableObjectGraph`."""
        return written(*((1, _written(node)) for node in self.nodes))

    def find(self, path: str, start: int = 0) -> int | None:
        """The object at "layer/kernel" below another one; None if there is none."""
        for name in filter(None, path.split("/")):
            following = self.nodes[start].children.get(name)
            if following is None:
                return None
            start = following
        return start

    def variable(self, path: str) -> str | None:
        """The name of the tensor that the variable at a path is stored under; None if there is none."""
        number = self.find(path)
        return None if number is None else self.nodes[number].tensors.get(VALUE)

    def slot(self, optimizer: str, variable: str, name: str) -> str | None:
        """The name of the tensor with an optimizer's state for a variable; None if there is none."""
        owner, target = self.find(optimizer), self.find(variable)
        if owner is None or target is None:
            return None
        number = self.nodes[owner].slots.get((target, name))
        return None if number is None else self.nodes[number].tensors.get(VALUE)


def _node(message: Message) -> Node:
    return Node(
        {text(child, 2): signed(child, 1) for child in messages(message, 1)},
        {text(tensor, 1): text(tensor, 3) for tensor in messages(message, 2)},
        {(signed(s, 1), text(s, 2)): signed(s, 3) for s in messages(message, 3)},
        next((text(tensor, 2) for tensor in messages(message, 2) if text(tensor, 1) == VALUE), ""),
    )


def _written(node: Node) -> bytes:
    children = [(1, written((1, number), (2, name))) for name, number in node.children.items()]
    tensors = [(2, written((1, n), (2, node.name), (3, key))) for n, key in node.tensors.items()]
    slots = [(3, written((1, target), (2, n), (3, number))) for (target, n), number in node.slots.items()]
    return written(*children, *tensors, *slots, (5, written((1, 1)) if children or tensors else b""))
