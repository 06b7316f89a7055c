"""Pooling and what adds, cuts off or repeats places: against plain loops, and their gradients."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest

from storage.errors import ConfigurationError
from tests.unit.nn.layer_checks import check_layer, predict
from workers import nn
from workers.nn import layers

RNG = np.random.default_rng(5)


def axis_windows(size: int, pool: int, stride: int, padding: str) -> list[range]:
    """The places of each window that lie in the input."""
    if padding == "valid":
        return [range(a, a + pool) for a in range(0, size - pool + 1, stride)]
    count = math.ceil(size / stride)
    front = max((count - 1) * stride + pool - size, 0) // 2
    starts = [o * stride - front for o in range(count)]
    return [range(max(a, 0), min(a + pool, size)) for a in starts]


def by_loops(layer: Any, x: np.ndarray) -> np.ndarray:
    reduce = np.max if "Max" in type(layer).__name__ else np.mean
    axes = [
        axis_windows(*each, layer.padding)
        for each in zip(x.shape[1:-1], layer.pool_size, layer.strides, strict=True)
    ]
    y = np.zeros((len(x), *map(len, axes), x.shape[-1]))
    for window in itertools.product(*(range(len(each)) for each in axes)):
        places = np.ix_(*(axis[i] for axis, i in zip(axes, window, strict=True)))
        inside = x[(slice(None), *places)].astype(np.float64)
        y[(slice(None), *window)] = reduce(inside, axis=tuple(range(1, inside.ndim - 1)))
    return y


POOLINGS = {
    "default": ((6, 4, 3), {}),
    "rest left over": ((7, 5, 3), {}),
    "overlapping": ((7, 6, 2), {"pool_size": 3, "strides": 2}),
    "same": ((7, 5, 2), {"pool_size": (3, 2), "strides": (2, 3), "padding": "same"}),
    "same disjoint": ((5, 5, 2), {"padding": "same"}),
    "apart": ((7, 7, 1), {"pool_size": 2, "strides": 3}),
    "whole": ((3, 4, 2), {"pool_size": (3, 4)}),
}


@pytest.mark.parametrize("cls", [nn.MaxPooling2D, nn.AveragePooling2D])
@pytest.mark.parametrize("case", POOLINGS)
def test_pooling_of_images_equals_plain_loops_and_its_gradient_differences(cls: type, case: str) -> None:
    shape, kwargs = POOLINGS[case]
    x = RNG.standard_normal((2, *shape)).astype(np.float32)
    np.testing.assert_allclose(predict(cls(**kwargs), x), by_loops(cls(**kwargs), x), rtol=1e-12)
    check_layer(cls(**kwargs), x)


@pytest.mark.parametrize("cls", [nn.MaxPooling1D, layers.AveragePooling1D])
@pytest.mark.parametrize("kwargs", [{}, {"pool_size": 3, "strides": 2, "padding": "same"}])
def test_pooling_of_steps_equals_plain_loops_and_its_gradient_differences(cls: type, kwargs: Any) -> None:
    x = RNG.standard_normal((2, 7, 3)).astype(np.float32)
    np.testing.assert_allclose(predict(cls(**kwargs), x), by_loops(cls(**kwargs), x), rtol=1e-12)
    check_layer(cls(**kwargs), x)


@pytest.mark.parametrize("strides", [1, 2])
def test_the_first_of_equal_maxima_gets_the_gradient(strides: int) -> None:
    x = nn.ops.convert_to_tensor(np.zeros((1, 4, 4, 1), np.float32))
    with nn.GradientTape() as tape:
        tape.watch(x)
        y = nn.MaxPooling2D(2, strides)(x)
    expected = np.zeros((4, 4))
    expected[: y.shape[1] * strides : strides, : y.shape[2] * strides : strides] = 1
    np.testing.assert_array_equal(tape.gradient(y, x).numpy()[0, ..., 0], expected)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_any_number_of_rows_gives_each_row_its_own_result(rows: int) -> None:
    x = RNG.standard_normal((5, 4, 6, 3)).astype(np.float32)
    for layer in (nn.MaxPooling2D(), nn.AveragePooling2D(3, 2, "same"), nn.GlobalMaxPooling2D()):
        np.testing.assert_array_equal(layer(x[:rows]).numpy(), layer(x).numpy()[:rows])


@pytest.mark.parametrize("keepdims", [False, True])
def test_global_pooling_reduces_all_places(keepdims: bool) -> None:
    images, steps = RNG.standard_normal((3, 4, 5, 2)), RNG.standard_normal((3, 4, 2))
    for cls, x, reduce in (
        (nn.GlobalAveragePooling2D, images, np.mean),
        (nn.GlobalMaxPooling2D, images, np.max),
        (nn.GlobalAveragePooling1D, steps, np.mean),
        (layers.GlobalMaxPooling1D, steps, np.max),
    ):
        layer = cls(keepdims=keepdims)
        x32 = x.astype(np.float32)
        expected = reduce(x32.astype(np.float64), axis=tuple(range(1, x.ndim - 1)), keepdims=keepdims)
        np.testing.assert_allclose(predict(layer, x32), expected)
        check_layer(layer, x)


def test_global_average_counts_only_the_steps_that_a_mask_leaves() -> None:
    x = RNG.standard_normal((2, 4, 3)).astype(np.float32)
    mask = np.array([[True, True, False, False], [True, False, True, True]])
    y = nn.GlobalAveragePooling1D()(x, mask=mask)
    np.testing.assert_allclose(y.numpy(), [x[0, :2].mean(0), x[1, [0, 2, 3]].mean(0)], rtol=1e-6)
    assert y.mask is None


def test_zeros_are_put_around() -> None:
    x = RNG.standard_normal((2, 3, 4, 2)).astype(np.float32)
    padded = nn.ZeroPadding2D(((1, 0), (2, 3)))(x).numpy()
    np.testing.assert_array_equal(padded, np.pad(x, ((0, 0), (1, 0), (2, 3), (0, 0))))
    assert nn.ZeroPadding2D((1, 2))(x).shape == (2, 5, 8, 2)
    assert nn.ZeroPadding2D(2)(x).shape == (2, 7, 8, 2)
    assert layers.ZeroPadding1D((0, 3))(x[0]).shape == (3, 7, 2)
    check_layer(nn.ZeroPadding2D(((1, 0), (2, 3))), x)
    check_layer(layers.ZeroPadding1D(2), x[0])


def test_borders_are_cut_off() -> None:
    x = RNG.standard_normal((2, 5, 6, 2)).astype(np.float32)
    np.testing.assert_array_equal(layers.Cropping2D(((1, 0), (2, 3)))(x).numpy(), x[:, 1:, 2:-3])
    np.testing.assert_array_equal(layers.Cropping2D()(x).numpy(), x)
    np.testing.assert_array_equal(layers.Cropping1D()(x[0]).numpy(), x[0][:, 1:-1])
    check_layer(layers.Cropping2D(((1, 0), (2, 3))), x)
    check_layer(layers.Cropping1D((1, 2)), x[0])


def test_places_are_repeated() -> None:
    x = RNG.standard_normal((2, 2, 3, 2)).astype(np.float32)
    np.testing.assert_array_equal(nn.UpSampling2D((2, 3))(x).numpy(), x.repeat(2, axis=1).repeat(3, axis=2))
    np.testing.assert_array_equal(layers.UpSampling1D(3)(x[0]).numpy(), x[0].repeat(3, axis=1))
    check_layer(nn.UpSampling2D((2, 3)), x)
    check_layer(layers.UpSampling1D(), x[0])


@pytest.mark.parametrize(
    "layer",
    [
        nn.MaxPooling1D(3),
        nn.MaxPooling2D((2, 3), 1, "same"),
        layers.AveragePooling1D(2, name="mean"),
        nn.AveragePooling2D(),
        nn.GlobalAveragePooling1D(),
        nn.GlobalAveragePooling2D(keepdims=True),
        layers.GlobalMaxPooling1D(),
        nn.GlobalMaxPooling2D(),
        layers.ZeroPadding1D((1, 2)),
        nn.ZeroPadding2D(((1, 2), (3, 4))),
        layers.Cropping1D(2),
        layers.Cropping2D(1),
        layers.UpSampling1D(3),
        nn.UpSampling2D((2, 3)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_from_its_config_is_the_same(layer: Any) -> None:
    config = json.loads(json.dumps(layers.serialize(layer)))
    again = layers.deserialize(config)
    assert type(again) is type(layer)
    assert again.get_config() == layer.get_config() == config["config"]


X = np.zeros((2, 5, 5, 3), np.float32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.MaxPooling2D(0), "pool_size must be a positive integer or 2 of them, not 0"),
        (lambda: nn.MaxPooling2D(2, strides=0), "MaxPooling2D: strides must be"),
        (lambda: nn.AveragePooling2D(padding="causal"), "padding must be 'valid' or 'same', not 'causal'"),
        (lambda: nn.MaxPooling2D(data_format="channels_first"), "use 'channels_last'"),
        (lambda: nn.MaxPooling2D(6)(X), "a window of .* does not fit into an input"),
        (lambda: nn.MaxPooling1D()(X), "MaxPooling1D takes an input of 3 axes"),
        (lambda: nn.GlobalMaxPooling2D()(X[0]), "takes an input of 4 axes"),
        (lambda: nn.ops.max_pool(X, 2, padding="full"), "padding must be 'valid' or 'same', not 'full'"),
        (lambda: nn.ops.average_pool(X[0, 0], 2), "3 axes or more"),
        (lambda: nn.ZeroPadding2D(-1), "ZeroPadding2D: padding must be an integer from 0 up or 2 of them"),
        (lambda: nn.ZeroPadding2D((1, 2, 3)), "ZeroPadding2D: padding must be"),
        (lambda: layers.ZeroPadding1D("1"), "or two of them, not '1'"),
        (lambda: layers.ZeroPadding1D()(X), "takes an input of 3 axes"),
        (lambda: layers.Cropping2D(((1, 2), (True, 0))), "Cropping2D: cropping must be"),
        (lambda: layers.Cropping2D(((2, 3), (0, 0)))(X), "leaves nothing of an input of"),
        (lambda: layers.UpSampling1D(0), "size must be a positive integer"),
        (lambda: layers.UpSampling1D()(X), "takes an input of 3 axes"),
        (lambda: nn.UpSampling2D(interpolation="bilinear"), "use 'nearest'"),
    ],
)
def test_a_bad_argument_is_refused_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
