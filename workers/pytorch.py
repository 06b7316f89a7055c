"""PyTorch modules as engines: the same jobs, checkpoints and recovery as `workers.nn` models (extra
`torch`).

    def model(): module = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(),
    torch.nn.Linear(128, 10)) return TorchEngine(module, torch.nn.CrossEntropyLoss(reduction="none"),
    nn.optimizers.Adam(1e-3))

The module's parameters are views of the shared buffers, and its gradients of the gradient slots: nothing is
copied. Its floating-point buffers (running statistics) are a part of the state too; a microbatch starts
from those of the step, and the mean of what all microbatches make of them is the next step's.

The optimizer is one of `workers.nn.optimizers`, whose update is elementwise and out of place; with
PyTorch's names and defaults they differ in epsilon (1e-7 there, 1e-8 in PyTorch).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from storage.layout import Layout, Variable
from workers.nn import optimizers

try:
    import torch
except ImportError as error:
    raise ConfigurationError(
        "PyTorch is not installed: pip install 'holdfast[torch]' (its CPU build is enough)"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from workers.engine import Batch, Flat, Optimizer, Sums
    from workers.rng import Streams

_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool)


class TorchEngine:
    """`workers.engine.Engine` of a float32 module on the CPU.

    `loss(outputs, targets)` gives one value per sample (`reduction="none"`), or any tensor whose first axis
    is that of samples. `metrics` are functions of the same two that give one value per sample, by name.
    Inputs are given to the module as the dataset has them: floating-point ones as float32, integers as
    int64.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        loss: Callable[[Any, Any], torch.Tensor],
        optimizer: str | Mapping[str, Any] | Optimizer = "adam",
        metrics: Mapping[str, Callable[[Any, Any], torch.Tensor]] | None = None,
    ) -> None:
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        torch.set_flush_denormal(True)
        self._module = module
        self._loss = loss
        self._metrics = dict(metrics or {})
        self.metrics = ("loss", *self._metrics)
        self._parameters = dict(module.named_parameters())
        self._buffers = {
            name: buffer for name, buffer in module.named_buffers() if buffer.dtype not in _INTEGERS
        }
        tensors = {**self._parameters, **self._buffers}
        for name, tensor in tensors.items():
            if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
                raise ConfigurationError(
                    f"{name} is {tensor.dtype} on {tensor.device}: a training state is float32 on the CPU"
                )
        if not any(parameter.requires_grad for parameter in self._parameters.values()):
            raise ConfigurationError("the module has nothing to train: no parameter requires a gradient")
        self.layout = _layout(self._parameters, self._buffers)
        self._initial = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self._integers = {
            name: buffer.clone() for name, buffer in module.named_buffers() if buffer.dtype in _INTEGERS
        }
        assigned = [len(self._parameters) + i for i in range(len(self._buffers))]
        chosen = optimizers.get(optimizer)
        self._loss_scale = chosen.loss_scale_factor or 1.0
        self.optimizer = optimizers.for_model(chosen, self.layout, assigned=assigned)
        self._views: dict[int, tuple[Flat, dict[str, torch.Tensor]]] = {}

    def init(self, params: Flat, streams: Streams) -> None:
        """In place. Fill `params` with what the module held when it was given.

        A job's model function makes it on each worker, so it seeds PyTorch first (`torch.manual_seed`):
        else no two workers would have the same.
        """
        for name, view in self.layout.views(params).items():
            view[...] = self._initial[_torch_name(name)].numpy()

    def loss_and_grad(self, params: Flat, batch: Batch, streams: Streams, out: Flat) -> Sums:
        """Write the gradient of the sum over the batch's samples into `out`; return the sums."""
        inputs, targets = _tensors(batch)
        gradients = self._tensors_of(out)
        self._use(params, training=True)
        for name, parameter in self._parameters.items():
            gradients[name].zero_()
            parameter.grad = gradients[name] if parameter.requires_grad else None
        torch.manual_seed(int(streams.generator().integers(2**63)))
        outputs = self._module(*inputs)
        values = self._per_sample(self._loss(outputs, targets), inputs)
        torch.autograd.backward(values.sum() * self._loss_scale)  # the optimizer divides by it again
        weight = float(values.numel())
        for name, buffer in self._buffers.items():
            torch.mul(buffer, weight, out=gradients[name])
        with torch.no_grad():
            return self._sums(values, outputs, targets)

    def evaluate(self, params: Flat, batch: Batch) -> Sums:
        """The sums of the same metrics, in evaluation mode."""
        inputs, targets = _tensors(batch)
        self._use(params, training=False)
        with torch.no_grad():
            outputs = self._module(*inputs)
            values = self._per_sample(self._loss(outputs, targets), inputs)
            return self._sums(values, outputs, targets)

    def config(self) -> dict[str, Any]:
        """The module as it prints itself, the names of loss and metrics, and PyTorch's version."""
        return {
            "module": str(self._module),
            "loss": str(self._loss),
            "metrics": list(self._metrics),
            "optimizer": self.optimizer.get_config(),
            "torch": torch.__version__,
        }

    def _use(self, params: Flat, *, training: bool) -> None:
        """Have the module compute with these parameters. Buffers are copied: PyTorch writes them in place."""
        views = self._tensors_of(params)
        self._module.train(training)
        for name, parameter in self._parameters.items():
            parameter.data = views[name]
        with torch.no_grad():
            for name, buffer in self._buffers.items():
                buffer.copy_(views[name])
            own = dict(self._module.named_buffers())
            for name, value in self._integers.items():
                own[name].copy_(value)

    def _tensors_of(self, flat: Flat) -> dict[str, torch.Tensor]:
        """Tensors over the variables' places in a flat buffer; kept, as the caller has few of them."""
        found = self._views.get(id(flat))
        if found is None:  # what is kept holds the buffer, so the id cannot pass to another one
            views = self.layout.views(flat)
            tensors = {_torch_name(name): torch.from_numpy(view) for name, view in views.items()}
            found = self._views[id(flat)] = (flat, tensors)
        return found[1]

    def _per_sample(self, values: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        if values.ndim == 0 or len(values) != len(inputs[0]):
            raise ConfigurationError(
                f"the loss gives shape {tuple(values.shape)} for {len(inputs[0])} samples: let it give one "
                'value per sample, such as torch.nn.CrossEntropyLoss(reduction="none")'
            )
        return values

    def _sums(self, losses: torch.Tensor, outputs: Any, targets: Any) -> Sums:
        rows = [losses.detach()]
        rows += [self._per_sample(metric(outputs, targets), (losses,)) for metric in self._metrics.values()]
        return np.array([[float(row.double().sum()), float(row.numel())] for row in rows], np.float64)


def _layout(parameters: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor]) -> Layout:
    tensors = {**parameters, **buffers}
    plain = Layout.of({_our_name(name): tuple(tensor.shape) for name, tensor in tensors.items()})
    trainable = {_our_name(name): tensor.requires_grad for name, tensor in tensors.items()}
    variables = (Variable(v.name, v.offset, v.shape, v.dtype, trainable[v.name]) for v in plain.variables)
    return Layout(tuple(variables), plain.length)


def _our_name(name: str) -> str:
    return name.replace(".", "/")


def _torch_name(name: str) -> str:
    return name.replace("/", ".")


def _tensors(batch: Batch) -> tuple[tuple[torch.Tensor, ...], Any]:
    """Inputs and targets: all arrays but the last, and that one."""
    if len(batch) < 2:
        raise ConfigurationError("the dataset gives one array a batch: give (x, y)")
    tensors = [_tensor(array) for array in batch]
    return tuple(tensors[:-1]), tensors[-1]


def _tensor(array: Any) -> torch.Tensor:
    if not isinstance(array, np.ndarray):
        raise ConfigurationError("a PyTorch module takes plain arrays: give the dataset's parts one by one")
    dtype = np.float32 if array.dtype.kind == "f" else bool if array.dtype.kind == "b" else np.int64
    return torch.from_numpy(np.ascontiguousarray(array, dtype))
