"""Models as ONNX files, run by onnxruntime."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from storage.errors import ConfigurationError
from storage.store import open_store
from tests.unit.nn.op_cases import CASES
from workers import nn
from workers.nn.graph import trace
from workers.nn.numerics import Array, quiet
from workers.nn.ops.base import OPS, Run
from workers.nn.program import Program
from workers.nn.saving.onnx.translation import TRANSLATIONS, translated
from workers.nn.tensor import Spec, Untraceable, leaves
from workers.rng import Streams

if TYPE_CHECKING:
    from pathlib import Path

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
REFUSED = {"batch_normalization_training", "cumprod", "dropout", "loss", "loss_reduction", "normal_like"}
"""Operations of training, of chance, and one that ONNX does not have."""


def run(file: str | bytes, *inputs: Array) -> list[Array]:
    """What onnxruntime makes of the inputs, in their order."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    found: list[Array] = session.run(None, dict(zip(names, inputs, strict=True)))
    return found


def exported(model: Any, tmp_path: Path, *inputs: Array, opset: int = 18) -> list[Array]:
    """What onnxruntime gives for the model; it must be what the model gives."""
    path = tmp_path / "model.onnx"
    nn.saving.onnx.export(model, path, opset=opset)
    found = run(str(path), *inputs)
    wanted = leaves(model(inputs[0] if len(inputs) == 1 else list(inputs)))
    for y, tensor in zip(found, wanted, strict=True):
        assert y.dtype == tensor.numpy().dtype
        np.testing.assert_allclose(y, tensor.numpy(), **TOLERANCE)
    return found


def test_every_operation_is_translated_or_known_to_be_refused() -> None:
    assert set(TRANSLATIONS) | REFUSED == set(OPS)
    assert not set(TRANSLATIONS) & REFUSED


@pytest.mark.parametrize("opset", nn.saving.onnx.OPSETS)
@pytest.mark.parametrize("name", CASES)
def test_an_operation_gives_there_what_it_gives_here(name: str, opset: int) -> None:
    case = CASES[name]
    specs = [
        Spec((None, *x.shape[1:]) if i in case.rows else x.shape, x.dtype.name)
        for i, x in enumerate(case.operands)
    ]
    graph = trace(lambda given: case.function(*given), specs)
    names = [f"x{i}" for i in range(len(specs))], [f"y{i}" for i in range(len(graph.outputs))]

    def translate() -> Any:
        return translated(graph, *names, [""] * len(graph.nodes), name="case", opset=opset)

    if REFUSED & {node.op for node in graph.nodes} or "with dropout" in name or "sparsemax" in name:
        with pytest.raises(ConfigurationError, match=r"operation '\w+' cannot be exported: "):
            translate()
        return
    model = translate()
    onnx.checker.check_model(model, full_check=True)
    written = model.SerializeToString()
    for rows in (4, 2):
        operands = [np.asarray(x[:rows] if i in case.rows else x) for i, x in enumerate(case.operands)]
        with quiet():
            wanted = Program(graph, rows).forward(operands, [], Run(Streams(1)))
        for y, expected in zip(run(written, *operands), wanted, strict=True):
            assert y.dtype == expected.dtype
            np.testing.assert_allclose(y, expected, **TOLERANCE)


def numbers(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def test_row_29_a_trained_sequential_model_predicts_the_same_in_onnxruntime(tmp_path: Path) -> None:
    x = numbers(20, 8)
    model = nn.Sequential(
        [
            nn.Input((8,)),
            nn.Dense(16, activation="relu"),
            nn.BatchNormalization(),
            nn.Dropout(0.5),
            nn.Dense(3, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, np.arange(20) % 3, epochs=3, batch_size=5, verbose=0)
    before = model.get_weights()
    (found,) = exported(model, tmp_path, x)
    np.testing.assert_allclose(found, model.predict(x, verbose=0), **TOLERANCE)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_row_29_initializers_are_the_variables_by_name_and_nodes_are_named_by_layer(tmp_path: Path) -> None:
    inner = nn.Sequential([nn.Input((4,)), nn.Dense(3, name="deep")], name="inner")
    model = nn.Sequential([nn.Input((4,)), inner, nn.Dense(2, name="head")])
    exported(model, tmp_path, numbers(2, 4))
    graph = onnx.load(str(tmp_path / "model.onnx")).graph
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    for path, variable in model.named_variables().items():
        np.testing.assert_array_equal(stored.pop(path), variable.numpy())
    assert not stored
    assert [node.name for node in graph.node][:3] == [
        "inner/deep/MatMul_1",
        "inner/deep/Add_2",
        "head/MatMul_3",
    ]
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input]
    assert shapes == [["samples", 4]]


def test_row_29_a_functional_model_of_several_inputs_and_outputs(tmp_path: Path) -> None:
    a, b = nn.Input((4,), name="a"), nn.Input((3,), name="b")
    both = nn.layers.Concatenate()([nn.Dense(5, activation="gelu")(a), b])
    model = nn.Model([a, b], [nn.Dense(2)(both), nn.layers.Reshape((2, 4))(both)])
    first, second = exported(model, tmp_path, numbers(6, 4), numbers(6, 3))
    assert first.shape == (6, 2)
    assert second.shape == (6, 2, 4)


def test_row_29_inputs_and_outputs_in_a_dict_are_named_by_its_keys(tmp_path: Path) -> None:
    inputs = {"left": nn.Input((4,)), "right": nn.Input((4,))}
    model = nn.Model(inputs, {"sum": inputs["left"] + inputs["right"], "left": inputs["left"]})
    nn.saving.onnx.export(model, str(tmp_path / "m.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["left", "right"]
    names = [each.name for each in session.get_outputs()]
    x = numbers(2, 4)
    found = dict(zip(names, session.run(None, {"left": x, "right": 2 * x}), strict=True))
    wanted = model({"left": x, "right": 2 * x})
    np.testing.assert_allclose(found["sum"], wanted["sum"].numpy(), **TOLERANCE)
    np.testing.assert_array_equal(found["left_1"], x)  # one name stands for one value there


class Residual(nn.Model):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Dense(8, activation="silu")
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, inputs: Any) -> Any:
        return inputs + nn.ops.tanh(self.inner(inputs)) * self.scale


def test_row_29_a_subclassed_model_and_the_same_loaded_without_its_class(tmp_path: Path) -> None:
    x = numbers(5, 8)
    model = Residual()
    model(x)
    exported(model, tmp_path, x)
    model.save(str(tmp_path / "saved"))
    revived = nn.load_model(str(tmp_path / "saved"))
    (found,) = exported(revived, tmp_path, x)
    np.testing.assert_allclose(found, model(x).numpy(), **TOLERANCE)


def test_row_29_convolutions_and_poolings_with_channels_last(tmp_path: Path) -> None:
    layers = nn.layers
    model = nn.Sequential(
        [
            nn.Input((11, 9, 4)),
            layers.Conv2D(6, (3, 2), strides=2, padding="same", groups=2, activation="relu"),
            layers.Conv2D(6, 2, dilation_rate=2, padding="same"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(2, padding="same"),
            layers.Conv2DTranspose(5, 3, strides=2, padding="same"),
            layers.DepthwiseConv2D(3, depth_multiplier=2),
            layers.SeparableConv2D(4, 2, padding="same"),
            layers.AveragePooling2D(2, padding="same"),
            layers.ZeroPadding2D(1),
            layers.UpSampling2D(2),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )
    exported(model, tmp_path, numbers(3, 11, 9, 4))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_row_29_recurrent_layers_with_masks_and_in_both_directions(kind: str, tmp_path: Path) -> None:
    recurrent = getattr(nn.layers, kind)
    model = nn.Sequential(
        [
            nn.Input((7,)),
            nn.layers.Embedding(20, 6, mask_zero=True),
            nn.layers.Bidirectional(recurrent(5, return_sequences=True)),
            recurrent(4, go_backwards=True),
        ]
    )
    x = np.random.default_rng(0).integers(0, 20, (3, 7)).astype(np.float32)
    x[0, 4:] = x[1, :2] = x[2] = 0
    exported(model, tmp_path, x)


@pytest.mark.parametrize("opset", nn.saving.onnx.OPSETS)
def test_row_29_a_block_of_a_transformer(opset: int, tmp_path: Path) -> None:
    inputs = nn.Input((6,), dtype="int32")
    x = nn.layers.Embedding(30, 8, mask_zero=True)(inputs)
    attended = nn.layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)
    x = nn.layers.LayerNormalization()(x + attended)
    x = nn.layers.RMSNormalization()(x + nn.Dense(8)(nn.Dense(16, activation="gelu")(x)))
    model = nn.Model(inputs, nn.Dense(3)(nn.layers.GlobalAveragePooling1D()(x)))
    tokens = np.random.default_rng(1).integers(1, 30, (4, 6)).astype(np.int32)
    tokens[:, 4:] = 0
    exported(model, tmp_path, tokens, opset=opset)


class Noisy(nn.Layer):
    def call(self, inputs: Any) -> Any:
        return nn.ops.cumprod(inputs, axis=1)


def test_row_29_an_operation_that_onnx_lacks_is_refused_with_its_layer_and_nothing_is_written(
    tmp_path: Path,
) -> None:
    inner = nn.Sequential([nn.Input((4,)), Noisy(name="noisy")], name="inner")
    model = nn.Sequential([nn.Input((4,)), nn.Dense(4), inner])
    wanted = r"operation 'cumprod' of layer 'inner/noisy' cannot be exported: ONNX has no such operation"
    with pytest.raises(ConfigurationError, match=wanted):
        nn.saving.onnx.export(model, str(tmp_path / "m.onnx"))
    model = nn.Sequential([nn.Input((4,)), nn.layers.Activation("sparsemax", name="sparse")])
    with pytest.raises(ConfigurationError, match=r"of layer 'sparse' .* the activation 'sparsemax' has no"):
        nn.saving.onnx.export(model, str(tmp_path / "m.onnx"))
    assert not list(tmp_path.iterdir())


class Branching(nn.Layer):
    def call(self, inputs: Any) -> Any:
        return inputs if nn.ops.sum(inputs) > 0 else -inputs


def test_row_29_what_cannot_be_exported_says_why(tmp_path: Path) -> None:
    path = str(tmp_path / "m.onnx")
    with pytest.raises(ConfigurationError, match="the model is not built"):
        nn.saving.onnx.export(nn.Sequential([nn.Dense(3)]), path)
    model = nn.Sequential([nn.Input((4,)), nn.Dense(3)])
    for opset in (17, 99, "18", True):
        with pytest.raises(ConfigurationError, match="opset must be one of 18 to 23"):
            nn.saving.onnx.export(model, path, opset=opset)
    with pytest.raises(Untraceable, match=r"test_onnx.py"):
        nn.saving.onnx.export(nn.Sequential([nn.Input((4,)), Branching()]), path)
    assert not list(tmp_path.iterdir())


def test_row_29_more_weights_than_a_file_holds_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential([nn.Input((4,)), nn.Dense(3)])
    monkeypatch.setattr(nn.saving.onnx, "_MAX_NBYTES", 60)  # 15 float32
    with pytest.raises(ConfigurationError, match="an ONNX file holds less than 2 GiB"):
        nn.saving.onnx.export(model, str(tmp_path / "m.onnx"))


def test_row_29_what_onnx_types_do_not_allow_is_told_by_its_node(tmp_path: Path) -> None:
    model = nn.Sequential([nn.Input((4,), dtype="bool"), nn.layers.Lambda(lambda x: nn.ops.max(x, axis=1))])
    with pytest.raises(ConfigurationError, match=r"m\.onnx: ONNX does not take .*ReduceMax"):
        nn.saving.onnx.export(model, str(tmp_path / "m.onnx"))
    assert not list(tmp_path.iterdir())


def test_row_29_without_onnx_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'holdfast\[onnx\]'"):
        nn.saving.onnx.export(nn.Sequential([nn.Input((4,)), nn.Dense(3)]), str(tmp_path / "m.onnx"))


def test_row_29_a_file_replaces_another_as_a_whole_on_any_url(tmp_path: Path) -> None:
    x = numbers(2, 4)
    for units in (3, 5):
        model = nn.Sequential([nn.Input((4,)), nn.Dense(units)])
        nn.saving.onnx.export(model, "memory://onnx/model.onnx")
        (found,) = run(open_store("memory://onnx").read("model.onnx"), x)
        np.testing.assert_allclose(found, model(x).numpy(), **TOLERANCE)
