"""JAX functions as engines: the same jobs, checkpoints and recovery as `workers.nn` models (extra `jax`).

    def model():
        parameters = {"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}
        def loss(p, key, x, y):
            logits = x @ p["w"] + p["b"]
            return -jax.nn.log_softmax(logits)[jnp.arange(len(y)), y]
        return JaxEngine(parameters, loss, nn.optimizers.Adam(1e-3))

Everything is compiled once for each number of samples, for the CPU and one thread. JAX writes results to
memory of its own, so gradients are copied into the shared buffer.

The optimizer is one of `workers.nn.optimizers`, whose update is elementwise and out of place.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from storage.layout import Layout
from workers.nn import optimizers

# Before JAX is loaded, which reads them then: what is added up by several threads has no order.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    ]
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

try:
    import jax
except ImportError as error:
    raise ConfigurationError("JAX is not installed: pip install 'holdfast[jax]'") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from workers.engine import Batch, Flat, Optimizer, Sums
    from workers.rng import Streams


class JaxEngine:
    """`workers.engine.Engine` of a loss function over a tree of float32 arrays.

    `parameters` is that tree (of dicts, lists, tuples, dataclasses), with the values to begin with: the
    job's model function makes it on each worker, so it must draw from a key of its own. `loss(parameters,
    key, *arrays)` gives one value for each sample of the dataset's arrays; `key` is a PRNG key of the
    microbatch, and None in evaluation. `metrics` are functions of `(parameters, *arrays)` that give one value
    for each sample, by name. Floating-point arrays of the dataset come as float32, integers as int32.
    """

    def __init__(
        self,
        parameters: Any,
        loss: Callable[..., Any],
        optimizer: str | Mapping[str, Any] | Optimizer = "adam",
        metrics: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        leaves, self._tree = jax.tree_util.tree_flatten_with_path(parameters)
        if not leaves:
            raise ConfigurationError("JaxEngine: there are no parameters to train")
        self._initial = {_name_of(path): np.asarray(leaf) for path, leaf in leaves}
        for name, value in self._initial.items():
            if value.dtype != np.float32:
                raise ConfigurationError(
                    f"JaxEngine: {name or 'the parameter'} is {value.dtype}: a training state is float32"
                )
        self._loss = loss
        self._metrics = dict(metrics or {})
        self.metrics = ("loss", *self._metrics)
        self.layout = Layout.of({name: value.shape for name, value in self._initial.items()})
        chosen = optimizers.get(optimizer)
        self._loss_scale = chosen.loss_scale_factor or 1.0
        self.optimizer = optimizers.for_model(chosen, self.layout)
        self._trained = jax.jit(jax.value_and_grad(self._training_sums, has_aux=True))
        self._evaluated = jax.jit(self._evaluation_sums)

    def init(self, params: Flat, streams: Streams) -> None:
        """In place. Fill `params` with the values that the engine was given."""
        for name, view in self.layout.views(params).items():
            view[...] = self._initial[name]

    def loss_and_grad(self, params: Flat, batch: Batch, streams: Streams, out: Flat) -> Sums:
        """Write the gradient of the sum over the batch's samples into `out`; return the sums."""
        key = jax.random.key(int(streams.generator().integers(2**31)))
        (_, rows), gradients = self._trained(self._tree_of(params), key, _arrays(batch))
        views = self.layout.views(out).values()
        for view, gradient in zip(views, jax.tree_util.tree_leaves(gradients), strict=True):
            view[...] = gradient
        return _sums(rows)

    def evaluate(self, params: Flat, batch: Batch) -> Sums:
        """The sums of the same metrics, without a key."""
        return _sums(self._evaluated(self._tree_of(params), _arrays(batch)))

    def config(self) -> dict[str, Any]:
        """The parameters' shapes, the names of loss and metrics, and JAX's version."""
        return {
            "parameters": {name: list(value.shape) for name, value in self._initial.items()},
            "loss": getattr(self._loss, "__name__", type(self._loss).__name__),
            "metrics": list(self._metrics),
            "optimizer": self.optimizer.get_config(),
            "jax": jax.__version__,
        }

    def _training_sums(self, tree: Any, key: Any, arrays: tuple[Any, ...]) -> tuple[Any, list[Any]]:
        """What is differentiated, and the values of each metric."""
        values = self._per_sample("the loss", self._loss(tree, key, *arrays), arrays)
        return values.sum() * self._loss_scale, [values, *self._measured(tree, arrays)]

    def _evaluation_sums(self, tree: Any, arrays: tuple[Any, ...]) -> list[Any]:
        values = self._per_sample("the loss", self._loss(tree, None, *arrays), arrays)
        return [values, *self._measured(tree, arrays)]

    def _measured(self, tree: Any, arrays: tuple[Any, ...]) -> list[Any]:
        tree = jax.lax.stop_gradient(tree)
        return [self._per_sample(f"metric {n}", f(tree, *arrays), arrays) for n, f in self._metrics.items()]

    def _per_sample(self, what: str, values: Any, arrays: tuple[Any, ...]) -> Any:
        if getattr(values, "ndim", 0) == 0 or len(values) != len(arrays[0]):
            raise ConfigurationError(
                f"{what} gives shape {getattr(values, 'shape', ())} for {len(arrays[0])} samples: let it "
                "give one value for each"
            )
        return values

    def _tree_of(self, flat: Flat) -> Any:
        return jax.tree_util.tree_unflatten(self._tree, [*self.layout.views(flat).values()])


def _name_of(path: tuple[Any, ...]) -> str:
    """The place of a leaf in the tree, such as "layers/0/w"."""
    keys = (next(getattr(entry, a) for a in ("key", "idx", "name") if hasattr(entry, a)) for entry in path)
    return "/".join(str(key) for key in keys) or "parameters"


def _sums(rows: list[Any]) -> Sums:
    values = [np.asarray(row, np.float64) for row in rows]
    return np.array([[row.sum(), row.size] for row in values])


def _arrays(batch: Batch) -> tuple[Any, ...]:
    return tuple(_array(array) for array in batch)


def _array(array: Any) -> Any:
    if not isinstance(array, np.ndarray):
        raise ConfigurationError("a JAX function takes plain arrays: give the dataset's parts one by one")
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int32, copy=False)
