"""Activation functions under Keras's names, such that another operation can include them.

They are computed in place, so that a layer needs one workspace, and one pass over it stays in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from workers.nn import activation_functions as functions
from workers.nn import lookup
from workers.nn.lookup import check

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, eq=False)
class Activation:
    """A function and its derivative on workspaces.

    `forward(z)` turns z into y in place. `backward(kept, dy)` turns dy into dz in place, and may overwrite
    `kept`: y, or z where it `needs_input`. `arguments` are what the function takes beside the tensor, with
    their defaults; both functions take them by name.
    """

    name: str
    forward: Callable[..., None]
    backward: Callable[..., None]
    needs_input: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    general: Activation | None = None
    """What a call with arguments means, where that is another function."""
    of_axis: bool = False
    """Whether it looks at all values along an axis at once."""

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The function of a tensor, as a tensor; of an array, as a new array, at least float32."""
        if self.general is not None and (args or kwargs):
            return self.general(x, *args, **kwargs)
        names = list(self.arguments)
        if len(args) > len(names):
            raise ConfigurationError(f"{self.name}: {len(args)} arguments, but it takes {names}")
        given = dict(zip(names, args, strict=False)) | kwargs
        if hasattr(x, "spec"):
            from workers.nn.ops.base import apply, floating

            if self is linear:
                return x
            return apply("activation", floating(x), activation=self.name, arguments=given)
        y = np.array(x, order="C")
        y = y.astype(np.result_type(y.dtype, np.float32) if y.dtype.kind == "f" else np.float32, copy=False)
        self.bound(given).forward(y)
        return y

    def bound(self, given: Mapping[str, Any]) -> Activation:
        """The same function with some of its arguments given.

        Raises ConfigurationError for names that it does not know, what is missing, and values that are no
        real numbers, or negative slopes.
        """
        if not given and REQUIRED not in self.arguments.values():
            return self
        check(
            set(given) <= set(self.arguments),
            f"{self.name}: it takes {list(self.arguments)}, not {sorted(given)}",
        )
        values = {**self.arguments, **given}
        for key, value in values.items():
            fits = (value is None and key == "max_value") or isinstance(value, int | float)
            check(fits, f"{self.name}: {key} must be a number, not {value!r}")
            check(
                key not in ("negative_slope", "alpha", "b") or value >= 0,
                f"{self.name}: {key} must not be negative: {value!r}",
            )
        forward, backward = partial(self.forward, **values), partial(self.backward, **values)
        return Activation(self.name, forward, backward, self.needs_input, of_axis=self.of_axis)


REQUIRED = "required"
"""In the place of a default: there is none."""


linear = Activation("linear", functions.linear, functions.linear_backward)
rectifier = Activation(
    "rectifier",
    functions.rectifier,
    functions.rectifier_backward,
    needs_input=True,
    arguments={"negative_slope": 0.0, "max_value": None, "threshold": 0.0},
)
relu = Activation("relu", functions.relu, functions.relu_backward, general=rectifier)
relu6 = Activation("relu6", functions.relu6, functions.relu6_backward)
leaky_relu = Activation(
    "leaky_relu", functions.leaky_relu, functions.leaky_relu_backward, arguments={"negative_slope": 0.2}
)
elu = Activation("elu", functions.elu, functions.elu_backward, arguments={"alpha": 1.0})
selu = Activation("selu", functions.selu, functions.selu_backward)
celu = Activation("celu", functions.celu, functions.celu_backward, arguments={"alpha": 1.0})
gelu = Activation(
    "gelu", functions.gelu, functions.gelu_backward, needs_input=True, arguments={"approximate": False}
)
silu = Activation("silu", functions.silu, functions.silu_backward, needs_input=True)
hard_silu = Activation("hard_silu", functions.hard_silu, functions.hard_silu_backward, needs_input=True)
mish = Activation("mish", functions.mish, functions.mish_backward, needs_input=True)
softplus = Activation("softplus", functions.softplus, functions.softplus_backward)
squareplus = Activation(
    "squareplus", functions.squareplus, functions.squareplus_backward, arguments={"b": 4.0}
)
sparse_plus = Activation("sparse_plus", functions.sparse_plus, functions.sparse_plus_backward)
softsign = Activation("softsign", functions.softsign, functions.softsign_backward)
sigmoid = Activation("sigmoid", functions.sigmoid, functions.sigmoid_backward)
log_sigmoid = Activation("log_sigmoid", functions.log_sigmoid, functions.log_sigmoid_backward)
hard_sigmoid = Activation("hard_sigmoid", functions.hard_sigmoid, functions.hard_sigmoid_backward)
sparse_sigmoid = Activation("sparse_sigmoid", functions.sparse_sigmoid, functions.sparse_sigmoid_backward)
tanh = Activation("tanh", functions.tanh, functions.tanh_backward)
hard_tanh = Activation("hard_tanh", functions.hard_tanh, functions.hard_tanh_backward)
tanh_shrink = Activation(
    "tanh_shrink", functions.tanh_shrink, functions.tanh_shrink_backward, needs_input=True
)
hard_shrink = Activation(
    "hard_shrink", functions.hard_shrink, functions.shrink_backward, arguments={"threshold": 0.5}
)
soft_shrink = Activation(
    "soft_shrink", functions.soft_shrink, functions.shrink_backward, arguments={"threshold": 0.5}
)
threshold = Activation(
    "threshold",
    functions.threshold,
    functions.threshold_backward,
    needs_input=True,
    arguments={"threshold": REQUIRED, "default_value": REQUIRED},
)
exponential = Activation("exponential", functions.exponential, functions.exponential_backward)
softmax, log_softmax, sparsemax = (
    Activation(forward.__name__, forward, backward, arguments={"axis": -1}, of_axis=True)
    for forward, backward in (
        (functions.softmax, functions.softmax_backward),
        (functions.log_softmax, functions.log_softmax_backward),
        (functions.sparsemax, functions.sparsemax_backward),
    )
)
swish, hard_swish = silu, hard_silu

FUSED = {each.name: each for each in list(vars().values()) if isinstance(each, Activation)}
"""Those that another operation can include, by name."""


def glu(x: Any, axis: int = -1) -> Any:
    """The first half of x along an axis times the sigmoid of the second."""
    from workers.nn.ops import split

    value, gate = split(x, 2, axis)
    return value * sigmoid(gate)


KNOWN: dict[str, Callable[..., Any]] = {
    **{name: each for name, each in FUSED.items() if each is not rectifier},  # which is `relu` to users
    "swish": silu,
    "hard_swish": hard_silu,
    "glu": glu,
}


def fused(name: str, arguments: Mapping[str, Any] | None = None) -> Activation:
    """The activation of that name, to be included in another operation. Raises ConfigurationError."""
    if name not in FUSED:
        raise ConfigurationError(f"unknown activation {name!r}: use one of {', '.join(FUSED)}")
    return FUSED[name].bound(arguments or {})


def fused_name(activation: Callable[[Any], Any], *, from_output: bool = False) -> str | None:
    """The name by which `fused` knows an activation; None for any other function.

    `from_output`: None also for one whose derivative does not follow from its output.
    """
    if not isinstance(activation, Activation) or (from_output and activation.needs_input):
        return None
    return activation.name


def get(identifier: Any) -> Callable[[Any], Any]:
    """The activation of that name, or the function itself; None stands for "linear"."""
    if identifier is None:
        return linear
    if isinstance(identifier, str | Mapping):
        identifier = lookup.deserialize("activation", identifier, KNOWN)
    if callable(identifier):
        found: Callable[[Any], Any] = identifier
        return found
    raise ConfigurationError(f"unknown activation {identifier!r}: use one of {', '.join(KNOWN)}")


def serialize(activation: Callable[[Any], Any]) -> Any:
    """What `get` takes for it: its name, or how a function of the user's is written."""
    if isinstance(activation, Activation):
        return activation.name
    names = [name for name, known in KNOWN.items() if known is activation]
    return names[0] if names else lookup.serialize(activation)
