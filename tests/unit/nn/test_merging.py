"""Layers that merge tensors, arrange them anew, or pass them through."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from storage.errors import ConfigurationError
from tests.unit.nn.layer_checks import check_layer
from tests.unit.nn.sequences import numbers
from workers import nn

A, B, C = (numbers(4, 3, 2, seed=i) for i in range(3))

MERGES: dict[str, tuple[Any, Any]] = {
    "add": (nn.Add(), A + B),
    "subtract": (nn.Subtract(), A - B),
    "multiply": (nn.Multiply(), A * B),
    "average": (nn.Average(), (A + B) / 2),
    "maximum": (nn.Maximum(), np.maximum(A, B)),
    "minimum": (nn.Minimum(), np.minimum(A, B)),
    "concatenate": (nn.Concatenate(), np.concatenate([A, B], -1)),
}


@pytest.mark.parametrize("name", MERGES)
def test_merging_layers_and_their_functions_merge_two_tensors(name: str) -> None:
    layer, expected = MERGES[name]
    np.testing.assert_allclose(layer([A, B]).numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(getattr(nn.layers, name)([A, B]).numpy(), expected, rtol=1e-6)


class Merged(nn.Layer):
    """A merge of a tensor and of what a dense layer makes of it."""

    def __init__(self, merge: Any) -> None:
        super().__init__()
        self.dense = nn.Dense(2, "tanh")
        self.merge = merge

    def call(self, x: Any) -> Any:
        return self.merge([x, self.dense(x), x])


@pytest.mark.parametrize(
    "merge", [nn.Add(), nn.Multiply(), nn.Average(), nn.Maximum(), nn.Minimum(), nn.Concatenate(1)]
)
def test_merges_of_three_have_exact_gradients(merge: Any) -> None:
    check_layer(Merged(merge), A)


def test_axes_are_put_in_behind_the_samples() -> None:
    few = numbers(4, 2)
    np.testing.assert_allclose(nn.Add()([A, few]).numpy(), A + few[:, None], rtol=1e-6)
    np.testing.assert_allclose(nn.Multiply()([few, A]).numpy(), A * few[:, None], rtol=1e-6)


@pytest.mark.parametrize(
    ("axes", "shapes", "subscripts"),
    [
        (1, ((4, 3), (4, 3)), "ni,ni->n"),
        ((2, 1), ((4, 3, 2), (4, 2, 5)), "nai,nib->nab"),
        (1, ((4, 3, 2), (4, 3, 5)), "nia,nib->nab"),
        ((1, 2), ((4, 3), (4, 2, 3)), "ni,nai->na"),
        (-1, ((4, 3, 2, 6), (4, 5, 6)), "nabi,nci->nabc"),
    ],
)
def test_dot_sums_products_along_one_axis_of_each(axes: Any, shapes: Any, subscripts: str) -> None:
    a, b = (numbers(*shape, seed=i) for i, shape in enumerate(shapes))
    expected = np.einsum(subscripts, a, b)
    found = nn.Dot(axes)([a, b]).numpy()
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=1e-4, atol=1e-5)
    assert found.shape == (expected.shape if expected.ndim > 1 else (4, 1))
    np.testing.assert_array_equal(nn.layers.dot([a, b], axes).numpy(), found)


def test_normalized_dot_is_the_cosine() -> None:
    a, b = numbers(4, 3), numbers(4, 3, seed=1)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(nn.Dot(1, normalize=True)([a, b]).numpy()[:, 0], cosine, rtol=1e-5)


def masked(x: np.ndarray, mask: Any) -> Any:
    tensor = nn.ops.convert_to_tensor(x)
    tensor.mask = nn.ops.convert_to_tensor(np.array(mask, bool))
    return tensor


def test_a_place_counts_if_it_counts_in_one_of_the_inputs() -> None:
    a, b = masked(A[:2], [[1, 0, 0], [1, 1, 0]]), masked(B[:2], [[0, 0, 1], [1, 0, 0]])
    np.testing.assert_array_equal(nn.Add()([a, b]).mask.numpy(), [[1, 0, 1], [1, 1, 0]])
    assert nn.Add()([a, B[:2]]).mask is None
    joined = nn.Concatenate(axis=1)([a, C[:2]])
    np.testing.assert_array_equal(joined.mask.numpy(), [[1, 0, 0, 1, 1, 1], [1, 1, 0, 1, 1, 1]])
    np.testing.assert_array_equal(nn.Concatenate()([a, b]).mask.numpy(), [[0, 0, 0], [1, 0, 0]])


def test_a_model_of_branches_is_saved_and_run() -> None:
    inputs = nn.Input((6,))
    left, right = nn.Dense(4, "relu")(inputs), nn.Dense(4)(inputs)
    both = nn.layers.concatenate([nn.layers.add([left, right]), nn.layers.multiply([left, right])])
    model = nn.Model(inputs, nn.Dense(2)(both))
    again = type(model).from_config(json.loads(json.dumps(model.get_config())))
    again.set_weights(model.get_weights())
    x = numbers(3, 6)
    np.testing.assert_array_equal(again(x).numpy(), model(x).numpy())


def test_layers_that_arrange_elements_anew() -> None:
    x = numbers(4, 3, 2)
    assert nn.Reshape((2, 3))(x).numpy().tolist() == x.reshape(4, 2, 3).tolist()
    assert nn.Reshape((-1,))(x).shape == (4, 6)
    assert nn.Permute((2, 1))(x).numpy().tolist() == x.swapaxes(1, 2).tolist()
    assert nn.RepeatVector(3)(x[:, 0]).numpy().tolist() == np.repeat(x[:, :1], 3, 1).tolist()
    assert nn.Identity()(x).numpy().tolist() == x.tolist()
    model = nn.Sequential([nn.Input((3, 2)), nn.Reshape((1, -1)), nn.Permute((2, 1)), nn.Flatten()])
    assert model.output_shape == (None, 6)
    assert model(x).numpy().tolist() == x.reshape(4, 6).tolist()


@pytest.mark.parametrize(
    "layer", [nn.Reshape((3, -1)), nn.Permute((2, 1)), nn.TimeDistributed(nn.RepeatVector(2))]
)
def test_arranging_has_exact_gradients(layer: Any) -> None:
    check_layer(layer, numbers(2, 3, 2))


CONFIGURED = [
    *(layer for layer, _ in MERGES.values()),
    nn.Dot((1, 2), normalize=True),
    nn.Reshape((2, -1), name="a"),
    nn.Permute((2, 1, 3)),
    nn.RepeatVector(3),
    nn.Identity(),
]


@pytest.mark.parametrize("layer", CONFIGURED, ids=lambda layer: type(layer).__name__)
def test_a_layer_from_its_config_is_equal(layer: Any) -> None:
    config = json.loads(json.dumps(layer.get_config()))
    again = nn.layers.get({"class_name": type(layer).__name__, "config": config})
    assert type(again) is type(layer)
    assert again.get_config() == config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Add()(A), "call it on a list of tensors"),
        (lambda: nn.Add()([]), "give at least one tensor"),
        (lambda: nn.Subtract()([A, B, C]), "give 2 tensors, not 3"),
        (lambda: nn.Add()([A, A[:, :2]]), "do not go together"),
        (lambda: nn.Dot(0), "axes must be a number, or two, and not 0"),
        (lambda: nn.Dot((1, 2, 3)), "axes must be a number, or two"),
        (lambda: nn.Dot(1)([A, numbers(4, 5, 2)]), "do not go together"),
        (lambda: nn.Reshape((5, -1))(A), r"a sample of shape \(3, 2\) does not fit into \(5, -1\)"),
        (lambda: nn.Reshape((-1, -1))(A), "does not fit"),
        (lambda: nn.Permute((0, 1)), "dims must be the numbers of a sample's axes from 1"),
        (lambda: nn.Permute((1, 2, 3))(A), "does not go with dims"),
        (lambda: nn.RepeatVector(0), "n must be a positive integer, not 0"),
        (lambda: nn.RepeatVector(2)(A), r"give \(samples, features\)"),
    ],
)
def test_a_bad_argument_is_refused_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
