"""Convolutions of every kind against plain loops, their gradients, and what is refused."""

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
from workers.nn.ops import sliding
from workers.nn.ops.windows import Windows, chunks

RNG = np.random.default_rng(11)


def fronts(size: int, kernel: int, stride: int, dilation: int, padding: str) -> tuple[int, int]:
    """How many zeros TensorFlow puts in front of an axis, and how many windows it has."""
    reach = dilation * (kernel - 1) + 1
    if padding == "same":
        count = math.ceil(size / stride)
        return max((count - 1) * stride + reach - size, 0) // 2, count
    front = reach - 1 if padding == "causal" else 0
    return front, math.ceil((size + front - reach + 1) / stride)


def positions(layer: Any, sizes: Any) -> Any:
    """(window, place of the window, element of the input) for all that lie within it."""
    axes = []
    for size, k, s, d in zip(sizes, layer.kernel_size, layer.strides, layer.dilation_rate, strict=True):
        front, count = fronts(size, k, s, d, layer.padding)
        axes.append(
            [
                (o, t, o * s + t * d - front)
                for o in range(count)
                for t in range(k)
                if 0 <= o * s + t * d - front < size
            ]
        )
    for combined in itertools.product(*axes):
        yield tuple(zip(*combined, strict=True))


def counts(layer: Any, sizes: Any) -> tuple[int, ...]:
    given = zip(sizes, layer.kernel_size, layer.strides, layer.dilation_rate, strict=True)
    return tuple(fronts(*each, layer.padding)[1] for each in given)


def by_loops(layer: Any, x: np.ndarray) -> np.ndarray:
    """A convolution, element by element, in float64."""
    kernel = layer.kernel.numpy().astype(np.float64)
    per_group, filters = kernel.shape[-2:]
    groups = x.shape[-1] // per_group
    y = np.zeros((len(x), *counts(layer, x.shape[1:-1]), filters))
    for window, place, element in positions(layer, x.shape[1:-1]):
        for g in range(groups):
            here, there = np.s_[g * per_group : (g + 1) * per_group], filters // groups
            f = np.s_[g * there : (g + 1) * there]
            values = x[(slice(None), *element, here)]
            y[(slice(None), *window, f)] += values @ kernel[place][:, f]
    return y + layer.bias.numpy()


def depthwise_by_loops(kernel: np.ndarray, layer: Any, x: np.ndarray) -> np.ndarray:
    channels, depth = kernel.shape[-2:]
    y = np.zeros((len(x), *counts(layer, x.shape[1:-1]), channels * depth))
    for window, place, element in positions(layer, x.shape[1:-1]):
        for c, j in np.ndindex(channels, depth):
            y[(slice(None), *window, c * depth + j)] += x[(slice(None), *element, c)] * kernel[place][c, j]
    return y


def transposed_by_loops(layer: Any, x: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    kernel = layer.kernel.numpy().astype(np.float64)
    y = np.zeros((len(x), *sizes, kernel.shape[-2]))
    assert counts(layer, sizes) == x.shape[1:-1]
    for window, place, element in positions(layer, sizes):
        y[(slice(None), *element)] += x[(slice(None), *window)] @ kernel[place].T
    return y + layer.bias.numpy()


def randomized(layer: Any, x: np.ndarray) -> Any:
    layer(x.astype(np.float32))
    for variable in layer.weights:
        variable.assign(RNG.standard_normal(variable.shape))
    return layer


CONVOLUTIONS = {
    "plain": (nn.Conv2D, (5, 6, 3), {"filters": 4, "kernel_size": 3}),
    "same": (nn.Conv2D, (5, 6, 3), {"filters": 2, "kernel_size": (3, 2), "padding": "same"}),
    "strided": (nn.Conv2D, (7, 5, 2), {"filters": 3, "kernel_size": 3, "strides": 2, "padding": "same"}),
    "steps beyond the window": (nn.Conv2D, (7, 8, 2), {"filters": 3, "kernel_size": 2, "strides": 3}),
    "dilated": (
        nn.Conv2D,
        (7, 6, 2),
        {"filters": 2, "kernel_size": 2, "dilation_rate": (3, 2), "padding": "same"},
    ),
    "reach beyond the input": (nn.Conv2D, (2, 2, 2), {"filters": 2, "kernel_size": 5, "padding": "same"}),
    "many channels": (nn.Conv2D, (4, 5, 9), {"filters": 2, "kernel_size": 3, "padding": "same"}),
    "one channel": (nn.Conv2D, (6, 5, 1), {"filters": 3, "kernel_size": 3, "padding": "same"}),
    "one channel dilated": (nn.Conv2D, (6, 5, 1), {"filters": 3, "kernel_size": 2, "dilation_rate": 2}),
    "1 x 1": (nn.Conv2D, (3, 4, 5), {"filters": 2, "kernel_size": 1}),
    "1 x 1 strided": (nn.Conv2D, (5, 4, 3), {"filters": 2, "kernel_size": 1, "strides": 2}),
    "patches": (nn.Conv2D, (4, 6, 3), {"filters": 4, "kernel_size": (2, 3), "strides": (2, 3)}),
    "whole": (nn.Conv2D, (3, 4, 2), {"filters": 4, "kernel_size": (3, 4)}),
    "groups": (nn.Conv2D, (4, 5, 6), {"filters": 4, "kernel_size": 2, "groups": 2}),
    "groups of patches": (
        nn.Conv2D,
        (4, 4, 4),
        {"filters": 6, "kernel_size": 2, "strides": 2, "groups": 2, "padding": "same"},
    ),
    "groups 1 x 1": (nn.Conv2D, (3, 3, 6), {"filters": 6, "kernel_size": 1, "groups": 3}),
    "one filter a channel": (nn.Conv2D, (4, 4, 3), {"filters": 3, "kernel_size": 3, "groups": 3}),
    "causal": (nn.Conv1D, (7, 3), {"filters": 4, "kernel_size": 3, "padding": "causal", "dilation_rate": 2}),
    "causal strided": (
        nn.Conv1D,
        (7, 3),
        {"filters": 4, "kernel_size": 3, "padding": "causal", "strides": 2},
    ),
    "steps": (nn.Conv1D, (8, 2), {"filters": 3, "kernel_size": 4, "strides": 2, "padding": "same"}),
    "steps in order": (nn.Conv1D, (8, 2), {"filters": 3, "kernel_size": 4, "strides": 4}),
    "volume": (
        nn.layers.Conv3D,
        (3, 4, 3, 2),
        {"filters": 2, "kernel_size": (2, 3, 2), "padding": "same", "strides": (1, 2, 1)},
    ),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_equals_plain_loops_and_its_gradient_differences(case: str) -> None:
    cls, shape, kwargs = CONVOLUTIONS[case]
    x = RNG.standard_normal((3, *shape))
    layer = randomized(cls(**kwargs, bias_initializer="ones"), x)
    np.testing.assert_allclose(predict(layer, x.astype(np.float32)), by_loops(layer, x.astype(np.float32)))
    check_layer(cls(**kwargs, activation="tanh"), x[:2])


DEPTHWISE = {
    "plain": (nn.DepthwiseConv2D, (5, 4, 3), {"kernel_size": 3}),
    "two filters": (
        nn.DepthwiseConv2D,
        (5, 4, 3),
        {"kernel_size": 3, "depth_multiplier": 2, "padding": "same"},
    ),
    "strided": (nn.DepthwiseConv2D, (6, 5, 2), {"kernel_size": (3, 2), "strides": 2, "padding": "same"}),
    "dilated": (nn.DepthwiseConv2D, (6, 6, 2), {"kernel_size": 2, "dilation_rate": 3, "padding": "same"}),
    "steps": (nn.layers.DepthwiseConv1D, (7, 3), {"kernel_size": 3, "depth_multiplier": 2}),
}


@pytest.mark.parametrize("case", DEPTHWISE)
def test_depthwise_convolution_equals_plain_loops_and_its_gradient_differences(case: str) -> None:
    cls, shape, kwargs = DEPTHWISE[case]
    x = RNG.standard_normal((3, *shape)).astype(np.float32)
    layer = randomized(cls(**kwargs), x)
    expected = depthwise_by_loops(layer.kernel.numpy().astype(np.float64), layer, x) + layer.bias.numpy()
    np.testing.assert_allclose(predict(layer, x), expected, rtol=1e-6)
    check_layer(cls(**kwargs, activation="tanh"), x[:2])


@pytest.mark.parametrize(
    ("cls", "shape", "kwargs"),
    [
        (nn.SeparableConv2D, (4, 5, 3), {"kernel_size": 3, "padding": "same", "depth_multiplier": 2}),
        (nn.layers.SeparableConv1D, (6, 3), {"kernel_size": 2, "strides": 2}),
    ],
)
def test_separable_convolution_is_a_depthwise_and_a_pointwise_one(cls: type, shape: Any, kwargs: Any) -> None:
    x = RNG.standard_normal((2, *shape)).astype(np.float32)
    layer = randomized(cls(4, **kwargs), x)
    assert [v.name for v in layer.weights] == ["depthwise_kernel", "pointwise_kernel", "bias"]
    depthwise, pointwise, bias = (v.numpy().astype(np.float64) for v in layer.weights)
    y = depthwise_by_loops(depthwise, layer, x)
    expected = y @ pointwise.reshape(pointwise.shape[-2:]) + bias
    np.testing.assert_allclose(predict(layer, x), expected, rtol=1e-6)
    check_layer(cls(2, **kwargs, activation="tanh"), x)


TRANSPOSED = {
    "plain": (nn.Conv2DTranspose, (3, 4, 2), {"kernel_size": 3}, (5, 6)),
    "doubled": (nn.Conv2DTranspose, (3, 2, 3), {"kernel_size": 2, "strides": 2, "padding": "same"}, (6, 4)),
    "same": (nn.Conv2DTranspose, (3, 4, 2), {"kernel_size": 3, "strides": 2, "padding": "same"}, (6, 8)),
    "valid": (nn.Conv2DTranspose, (3, 4, 2), {"kernel_size": (3, 1), "strides": 2}, (7, 8)),
    "more": (
        nn.Conv2DTranspose,
        (3, 4, 2),
        {"kernel_size": 3, "strides": 2, "padding": "same", "output_padding": (1, 0)},
        (6, 7),
    ),
    "dilated": (nn.Conv2DTranspose, (3, 4, 2), {"kernel_size": 2, "dilation_rate": 2}, (5, 6)),
    "steps": (
        nn.layers.Conv1DTranspose,
        (4, 2),
        {"kernel_size": 3, "strides": 2, "output_padding": 1},
        (10,),
    ),
}


@pytest.mark.parametrize("case", TRANSPOSED)
def test_transposed_convolution_equals_plain_loops_and_its_gradient_differences(case: str) -> None:
    cls, shape, kwargs, sizes = TRANSPOSED[case]
    x = RNG.standard_normal((2, *shape)).astype(np.float32)
    layer = randomized(cls(3, **kwargs), x)
    np.testing.assert_allclose(predict(layer, x), transposed_by_loops(layer, x, sizes), rtol=1e-6)
    check_layer(cls(2, **kwargs, activation="tanh"), x)


@pytest.mark.parametrize(
    "case", ["plain", "same", "groups", "patches", "many channels", "one channel", "steps in order"]
)
def test_samples_in_pieces_give_the_same_numbers(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls, shape, kwargs = CONVOLUTIONS[case]
    x = RNG.standard_normal((5, *shape)).astype(np.float32)
    layer = randomized(cls(**kwargs), x)
    whole = predict(layer, x)
    monkeypatch.setattr(sliding, "_LIMIT", 1500)
    np.testing.assert_allclose(predict(layer, x), whole, rtol=1e-12)
    check_layer(cls(**kwargs, activation="tanh"), x)


@pytest.mark.parametrize(("rows", "nbytes", "limit"), [(5, 10, 25), (0, 10, 25), (3, 99, 25), (1, 0, 25)])
def test_chunks_cover_all_rows_in_order_within_the_limit(rows: int, nbytes: int, limit: int) -> None:
    found = chunks(rows, nbytes, limit)
    assert found
    assert [i for each in found for i in range(rows)[each]] == list(range(rows))
    assert all((each.stop - each.start) * nbytes <= max(limit, nbytes) for each in found)


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_any_number_of_rows_gives_each_row_its_own_result(rows: int) -> None:
    layers = [
        nn.Conv2D(3, 3, padding="same"),
        nn.DepthwiseConv2D(3, padding="same"),
        nn.Conv2DTranspose(3, 3, strides=2, padding="same"),
    ]
    x = RNG.standard_normal((7, 5, 4, 2)).astype(np.float32)
    for layer in layers:
        randomized(layer, x)
        np.testing.assert_allclose(layer(x[:rows]).numpy(), layer(x).numpy()[:rows], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["plain", "patches"])
def test_a_tape_may_be_asked_twice(case: str) -> None:
    cls, shape, kwargs = CONVOLUTIONS[case]
    x = nn.ops.convert_to_tensor(RNG.standard_normal((2, *shape)).astype(np.float32))
    layer = cls(**kwargs)
    with nn.GradientTape(persistent=True) as tape:
        tape.watch(x)
        total = nn.ops.sum(nn.ops.square(layer(x)))
    first, second = ([g.numpy().copy() for g in tape.gradient(total, [x, layer.kernel])] for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_operand_may_lie_in_any_order_in_memory() -> None:
    x = RNG.standard_normal((2, 5, 4, 3)).astype(np.float32)
    layer = randomized(nn.Conv2D(3, 3), x)
    transposed = np.ascontiguousarray(x.transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0)
    np.testing.assert_array_equal(layer(transposed).numpy(), layer(x).numpy())


def test_an_activation_that_is_not_fused_is_applied_behind() -> None:
    x = RNG.standard_normal((2, 5, 4, 3)).astype(np.float32)
    layer = randomized(nn.Conv2D(3, 3), x)
    doubled = nn.Conv2D(3, 3, activation=lambda y: 2 * y)
    doubled(x)
    doubled.set_weights(layer.get_weights())
    np.testing.assert_array_equal(doubled(x).numpy(), 2 * layer(x).numpy())


def test_windows_tell_where_they_lie() -> None:
    apart = Windows.over((4, 6), (2, 3), (2, 3), "valid", (1, 1))
    assert (apart.tile, apart.are_disjoint, apart.lie_in_order) == (True, True, False)
    with_gap = Windows.over((5,), (2,), (3,), "valid", (1,))
    assert (with_gap.tile, with_gap.are_disjoint) == (False, True)
    assert Windows.over((3, 3), (1, 1), (1, 1), "same", (1, 1)).lie_in_order
    same = Windows.over((5,), (4,), (2,), "same", (1,))
    assert (same.before, same.after, same.count, same.padded) == ((1,), (2,), (3,), (8,))
    assert not same.are_disjoint


def every_layer() -> list[Any]:
    return [
        nn.Conv1D(4, 3, padding="causal", dilation_rate=2, activation="relu", name="a"),
        nn.Conv2D(4, (3, 2), strides=(1, 2), groups=2, use_bias=False, kernel_initializer="he_normal"),
        nn.layers.Conv3D(2, 2),
        nn.DepthwiseConv2D(3, depth_multiplier=2, depthwise_initializer="he_uniform"),
        nn.layers.DepthwiseConv1D(3, strides=2),
        nn.SeparableConv2D(4, 3, depth_multiplier=2),
        nn.layers.SeparableConv1D(4, 3),
        nn.Conv2DTranspose(4, 3, strides=2, output_padding=1, padding="same"),
        nn.layers.Conv1DTranspose(4, 3),
    ]


@pytest.mark.parametrize("layer", every_layer(), ids=lambda layer: type(layer).__name__)
def test_a_layer_from_its_config_is_the_same(layer: Any) -> None:
    config = json.loads(json.dumps(nn.layers.serialize(layer)))
    again = nn.layers.deserialize(config)
    assert type(again) is type(layer)
    assert again.get_config() == layer.get_config() == config["config"]
    assert config["config"]["data_format"] == "channels_last"


X = np.zeros((2, 5, 5, 3), np.float32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Conv2D(0, 3), "Conv2D: filters must be a positive integer, not 0"),
        (lambda: nn.Conv2D(4, 0), "Conv2D: kernel_size must be a positive integer or 2 of them, not 0"),
        (lambda: nn.Conv2D(4, (3, 3, 3)), "kernel_size must be"),
        (lambda: nn.Conv2D(4, 3, strides=(1, 0)), r"strides must be .*, not \(1, 0\)"),
        (lambda: nn.Conv2D(4, 3, padding="causal"), "padding must be one of valid, same, not 'causal'"),
        (lambda: nn.Conv2D(4, 3, data_format="channels_first"), "use 'channels_last'"),
        (lambda: nn.Conv2D(4, 3, strides=2, dilation_rate=2), "one of them must be 1"),
        (lambda: nn.Conv2D(4, 3, groups=3), "4 filters cannot be shared out to 3 groups"),
        (lambda: nn.Conv2D(4, 3, groups=2)(X), "3 channels cannot be shared out to 2 groups"),
        (lambda: nn.Conv2D(4, 6)(X), r"a window of \(6, 6\) does not fit into an input of \(5, 5\)"),
        (lambda: nn.Conv2D(4, 3)(X[0]), "takes an input of 4 axes"),
        (lambda: nn.Conv2D(4, 3)(nn.Input((None, 5, 3))), "all but the first known"),
        (lambda: nn.DepthwiseConv2D(3, depth_multiplier=0), "depth_multiplier must be a positive integer"),
        (lambda: nn.Conv2DTranspose(4, 3, strides=2, output_padding=2), "output_padding must be 2 numbers"),
        (lambda: nn.Conv2DTranspose(4, 3, padding="causal"), "padding must be one of valid, same"),
        (lambda: nn.ops.conv(X, np.zeros((3, 3, 2, 4), np.float32)), "does not fit a kernel"),
        (lambda: nn.ops.conv(X, np.zeros((3, 3, 4), np.float32)), "does not fit"),
        (lambda: nn.ops.conv(X, np.zeros((3, 3, 3, 4)), padding="full"), "padding must be .*, not 'full'"),
        (lambda: nn.ops.conv(np.zeros((2, 3)), np.zeros((1, 3, 4))), "3 axes or more"),
        (
            lambda: nn.ops.conv(X, np.zeros((3, 3, 3, 4), np.float32), bias=np.zeros(5, np.float32)),
            r"a bias of shape \(5,\) does not fit 4 filters",
        ),
        (lambda: nn.ops.depthwise_conv(X, np.zeros((3, 3, 2, 1), np.float32)), "does not fit a kernel"),
        (lambda: nn.ops.conv_transpose(X, np.zeros((3, 3, 4, 2), np.float32)), "does not fit a kernel"),
        (
            lambda: nn.ops.conv_transpose(X, np.zeros((3, 3, 4, 3), np.float32), padding="causal"),
            "no causal padding",
        ),
        (
            lambda: nn.ops.conv_transpose(X, np.zeros((1, 1, 4, 3), np.float32), 1, output_padding=3),
            "output_padding .* does not go with strides",
        ),
    ],
)
def test_a_bad_convolution_is_refused_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
