"""Models as ONNX files, for onnxruntime and whatever else runs them: `nn.saving.onnx.export`.

What a model computes without training is traced, and each operation of the graph becomes nodes of ONNX's
standard set. Initializers have the names, shapes and layout of the model's variables; nodes begin with the
layer that they come from. ONNX's convolutions have channels first, so arrays are turned round for them.

What differs: an embedding takes negative numbers for places counted from the end, where ours refuses them.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from storage.errors import ConfigurationError
from storage.files import file_at
from workers.nn.graph import Builder, trace
from workers.nn.layers.base import Layer
from workers.nn.lookup import check
from workers.nn.saving.graphs import check_held
from workers.nn.saving.onnx.translation import translated
from workers.nn.saving.signatures import names_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import FrameType

    from workers.nn.model import Model

ENDING = ".onnx"

OPSETS = (18, 23)
"""The first and the last version of ONNX's operator set that can be written."""

_MAX_NBYTES = 2**31 - 2**24
"""A file is one message of Protocol Buffers, which is less than 2 GiB; the rest is for the nodes."""


def export(model: Model, path: str | Path, *, opset: int = OPSETS[0]) -> None:
    """Write what a built model computes without training as an ONNX file, at any fsspec URL.

    Inputs are named "inputs", "inputs_0", ... or as the keys of a dict; outputs "output_0", ... likewise. The
    number of samples stays open where the model's is. The file is checked by ONNX before it is written,
    whole or not at all.

    Raises ConfigurationError for an operation that ONNX does not have, with its layer, for another version
    of the operators than `OPSETS` spans, and for weights of 2 GiB or more; Untraceable, with the line, for
    code that asks for a tensor's value.
    """
    onnx, file = _library(), file_at(os.fspath(path))
    first, last = OPSETS[0], min(OPSETS[1], onnx.defs.onnx_opset_version())
    check(
        isinstance(opset, int) and first <= opset <= last,
        f"opset must be one of {first} to {last}, not {opset!r}",
    )
    check(model.built, f"{path}: the model is not built: call it on data, or build it")
    builder = _Layers(model)
    graph = trace(model, model.input_spec, builder=builder)
    check_held(graph, model)
    nbytes = sum(v.numpy().nbytes for v in graph.variables) + sum(c.nbytes for c in graph.constants)
    check(
        nbytes < _MAX_NBYTES,
        f"{path}: an ONNX file holds less than 2 GiB, and the model's weights are {nbytes / 2**30:.1f} GiB",
    )
    names = names_of(model.input_spec, "inputs"), names_of(graph.structure, "output_0")
    written = translated(graph, *names, builder.found, name=model.name, opset=opset).SerializeToString()
    try:
        onnx.checker.check_model(written, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        reason = str(exc).strip().splitlines()[0]
        raise ConfigurationError(f"{path}: ONNX does not take what the model computes: {reason}") from exc
    file.write(written)


class _Layers(Builder):
    """A builder that notes for each operation by which layers it was called, from the outermost one on."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.found: list[str] = []
        self._model = model

    def add(self, op: str, attrs: Mapping[str, Any], operands: Sequence[Any]) -> Any:
        names = []
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code is Layer.__call__.__code__:
                layer: Layer = frame.f_locals["self"]
                names += [layer.name] if layer is not self._model else []
            frame = frame.f_back
        self.found.append("/".join(reversed(names)))
        return super().add(op, attrs, operands)


def _library() -> Any:
    try:
        import onnx
        import onnx.checker
        import onnx.defs
        import onnx.shape_inference
    except ImportError as exc:
        raise ConfigurationError("ONNX files need onnx: pip install 'holdfast[onnx]'") from exc
    return onnx


__all__ = ["ENDING", "OPSETS", "export"]
