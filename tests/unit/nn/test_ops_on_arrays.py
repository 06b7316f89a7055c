"""`nn.ops` on plain arrays and numbers: NumPy's values, Keras's dtypes, and clear errors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from storage.errors import ConfigurationError
from workers import nn
from workers.nn import activations, ops
from workers.nn.erf import erf
from workers.nn.graph import trace
from workers.nn.tensor import Spec

if TYPE_CHECKING:
    from collections.abc import Callable

A = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 7.5
B = np.array([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]], np.float32)


def int32(*values: int) -> Any:
    return np.array(values, np.int32)


@pytest.mark.parametrize(
    ("found", "dtype"),
    [
        (lambda: ops.add(1, 2), "int32"),
        (lambda: ops.add(1.5, 2), "float32"),
        (lambda: ops.add(True, True), "bool"),
        (lambda: ops.add(np.array([True]), 1), "int32"),
        (lambda: ops.add(int32(1), 1.5), "float32"),
        (lambda: ops.add(np.int64([1]), np.float32([1])), "float32"),
        (lambda: ops.add(np.float16([1]), 2.5), "float16"),
        (lambda: ops.add(np.float64([1]), 2.5), "float64"),
        (lambda: ops.add(np.float64([1]), np.float32([1])), "float64"),
        (lambda: ops.add(np.int8([1]), np.int32([1])), "int32"),
        (lambda: ops.add(np.uint64([1]), np.int64([1])), "float32"),
        (lambda: ops.add(np.int16([1]), 7), "int16"),
        (lambda: ops.add([1.0, 2.0], [1, 2]), "float32"),
        (lambda: ops.divide(3, 2), "float32"),
        (lambda: ops.divide(int32(3), int32(2)), "float32"),
        (lambda: ops.floor_divide(int32(3), int32(2)), "int32"),
        (lambda: ops.exp(1), "float32"),
        (lambda: ops.exp(1.0), "float32"),
        (lambda: ops.mean(int32(1, 2)), "float32"),
        (lambda: ops.sum(np.array([True, True])), "int32"),
        (lambda: ops.sum(int32(1, 2)), "int32"),
        (lambda: ops.argmax(A), "int32"),
        (lambda: ops.argsort(B), "int32"),
        (lambda: ops.equal(A, 0), "bool"),
        (lambda: ops.arange(3), "int32"),
        (lambda: ops.arange(0, 1, 0.25), "float32"),
        (lambda: ops.zeros((2,)), "float32"),
        (lambda: ops.zeros_like(int32(1)), "int32"),
        (lambda: ops.one_hot([0, 1], 2), "float32"),
        (lambda: ops.convert_to_tensor([1, 2]), "int32"),
        (lambda: ops.convert_to_tensor([1, 2], "float16"), "float16"),
        (lambda: ops.convert_to_tensor(np.float64(2)), "float64"),
        (lambda: ops.softmax(int32(1, 2)), "float32"),
        (lambda: ops.where(True, 1, 2.5), "float32"),
        (lambda: ops.clip(int32(1, 5), 2, 3), "int32"),
        (lambda: ops.power(int32(2), 2), "int32"),
    ],
)
def test_dtypes_are_those_of_keras(found: Callable[[], Any], dtype: str) -> None:
    assert found().dtype == dtype


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (lambda: ops.moveaxis(A, (0, 1), (-1, 0)), np.moveaxis(A, (0, 1), (-1, 0))),
        (lambda: ops.transpose(A), A.T),
        (lambda: ops.flip(A), np.flip(A)),
        (lambda: ops.roll(A, 5), np.roll(A, 5)),
        (lambda: ops.roll(A, (1, -2), (0, 2)), np.roll(A, (1, -2), (0, 2))),
        (lambda: ops.tile(B, 2), np.tile(B, 2)),
        (lambda: ops.tile(B, (2, 1, 2)), np.tile(B, (2, 1, 2))),
        (lambda: ops.repeat(B, 2), np.repeat(B, 2)),
        (lambda: ops.pad(B, 1), np.pad(B, 1)),
        (lambda: ops.pad(B, (1, 2), constant_values=7), np.pad(B, (1, 2), constant_values=7)),
        (lambda: ops.squeeze(A[None, :, :1]), A[:, 0]),
        (lambda: ops.stack([B, B], -1), np.stack([B, B], -1)),
        (lambda: ops.cumsum(B), np.cumsum(B)),
        (lambda: ops.cumsum(B, 1), np.cumsum(B, 1)),
        (lambda: ops.sort(B, None), np.sort(B, None)),
        (lambda: ops.argsort(B, 0), np.argsort(B, 0)),
        (lambda: ops.argmax(A), np.argmax(A)),
        (lambda: ops.take(B, [-1, 0], 1), np.take(B, [-1, 0], 1)),
        (lambda: ops.take(B, [[4, 5]]), np.take(B, [[4, 5]])),
        (lambda: ops.take_along_axis(B, int32(2, 0)[:, None], 1), np.array([[3.0], [0.5]])),
        (lambda: ops.convert_to_tensor(A)[1, ..., None, ::2], A[1, ..., None, ::2]),
        (lambda: ops.convert_to_tensor(A)[:, [2, -3]], A[:, [2, -3]]),
        (lambda: ops.convert_to_tensor(A)[0, int32(2, 0)], A[0, [2, 0]]),
        (lambda: ops.convert_to_tensor(A)[..., int32(2, 0), int32(1, -1)], A[..., [2, 0], [1, -1]]),
        (lambda: ops.convert_to_tensor(A)[int32(0, 1), int32(2, 0), 1:], A[[0, 1], [2, 0], 1:]),
        (lambda: ops.top_k(int32(3, 9, 9, 1), 2)[1], np.array([1, 2])),
        (lambda: ops.mod(int32(-7), 3), np.array([2])),
        (lambda: ops.floor_divide(-7.0, 2.0), np.array(-4)),
        (lambda: ops.round([0.5, 1.5, -0.4]), np.array([0, 2, 0])),
        (lambda: ops.round(2.345, 2), np.array(2.34, np.float32)),
        (lambda: ops.power(B, 3), B**3),
        (lambda: ops.norm(B), np.linalg.norm(B)),
        (lambda: ops.norm(B, 1, axis=1), np.linalg.norm(B, 1, axis=1)),
        (lambda: ops.norm(B, -np.inf, axis=1, keepdims=True), np.array([[1.0], [0.5]])),
        (lambda: ops.std(B, 0), np.std(B, 0)),
        (lambda: ops.logsumexp([1000.0, 1000.0]), np.array(1000 + np.log(2))),
        (lambda: ops.logsumexp([-np.inf, -np.inf]), np.array(-np.inf)),
        (lambda: ops.einsum("...ij->...ji", A), np.swapaxes(A, 1, 2)),
        (lambda: ops.einsum("i...,j", B, B[0]), np.einsum("i...,j", B, B[0])),
        (lambda: ops.tensordot(A, B, ((1,), (1,))), np.tensordot(A, B, ((1,), (1,)))),
        (lambda: ops.dot(B, A), np.dot(B, A)),
        (lambda: ops.dot(2, B), 2 * B),
        (lambda: ops.matmul(B[0], A), np.matmul(B[0], A)),
        (lambda: ops.eye(2, 3, 1), np.eye(2, 3, 1)),
        (lambda: ops.full((2, 2), 3, "int64"), np.full((2, 2), 3)),
        (lambda: ops.clip(B, B * 0, 1), np.clip(B, 0, 1)),
        (lambda: ops.glu(A), A[..., :2] / (1 + np.exp(-A[..., 2:]))),
        (lambda: 2 - ops.convert_to_tensor(B), 2 - B),
        (lambda: B / ops.convert_to_tensor(B), np.ones_like(B)),
        (lambda: ops.convert_to_numpy(nn.Variable(B)), B),
    ],
)
def test_values_are_those_of_numpy(found: Callable[[], Any], expected: np.ndarray) -> None:
    value = np.asarray(found())
    assert value.shape == expected.shape
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.add(A, B), r"shapes \(2, 3, 4\) and \(2, 3\) do not go together"),
        (lambda: ops.reshape(A, (5, -1)), "reshape: .* does not fit"),
        (lambda: ops.reshape(A, (-1, -1)), "more than one -1"),
        (lambda: ops.sum(A, 3), "axis 3 is out of range for 3 axes"),
        (lambda: ops.sum(A, (1, -2)), "name one twice"),
        (lambda: ops.transpose(A, (0, 1)), "not all axes"),
        (lambda: ops.moveaxis(A, (0, 1), 0), "not equally many"),
        (lambda: ops.squeeze(A, 0), "not all of length 1"),
        (lambda: ops.broadcast_to(B, (3, 3)), "do not go together"),
        (lambda: ops.broadcast_to(A, (3, 4)), "does not fit"),
        (lambda: ops.concatenate([A, B]), "differ in more than axis 0"),
        (lambda: ops.concatenate([]), "at least one"),
        (lambda: ops.stack([A, B]), "are not one"),
        (lambda: ops.split(A, 2, 1), "cannot be cut into 2 equal parts"),
        (lambda: ops.split(A, [2, 1], 1), "not places in order"),
        (lambda: ops.unstack(A, 5), "does not have 5 slices"),
        (lambda: ops.pad(A, 1, "reflect"), "mode 'reflect' is not supported"),
        (lambda: ops.tile(A, (-1, 1, 1)), "tile: .* do not fit"),
        (lambda: ops.roll(A, (1, 2), (0,)), "2 shifts for 1 axes"),
        (lambda: ops.repeat(A, [1, 2], 0), "must be one number"),
        (lambda: ops.take(A, [2], 0), "place 2 is out of range for an axis of length 2"),
        (lambda: ops.take(A, [-3], 0), "place -3 is out of range"),
        (lambda: ops.take(A, [0.5], 0), "give whole numbers"),
        (lambda: ops.take_along_axis(B, int32(0), 1), "differ in more than axis 1"),
        (lambda: ops.convert_to_tensor(A)[2], "2 is out of range for axis 0"),
        (lambda: ops.convert_to_tensor(A)[0, 0, 0, 0], "cannot be indexed"),
        (lambda: ops.convert_to_tensor(A)[A > 0], "a mask gives a shape"),
        (lambda: ops.convert_to_tensor(A)[int32(0), :, int32(0)], "side by side"),
        (lambda: ops.convert_to_tensor(A)["x"], "'x' is no whole number"),
        (lambda: ops.top_k(B, 4), "no 4 elements"),
        (lambda: ops.matmul(A, A), "do not go together"),
        (lambda: ops.matmul(A, 2.0), "do not go together"),
        (lambda: ops.matmul(A, np.ones((5, 2))), "does not fit a kernel"),
        (lambda: ops.einsum("ij->i", A), "does not fit operands"),
        (lambda: ops.einsum("iij->ij", A), "cannot become"),
        (lambda: ops.einsum("ij,jk,kl->il", B, B, B), "give one or two at a time"),
        (lambda: ops.einsum("ij,jk->ik", B, B), "'j' is 3 and 2 long"),
        (lambda: ops.einsum("ij->ik", B), "cannot become"),
        (lambda: ops.tensordot(A, B, ((0, 1), (0,))), "are not pairs"),
        (lambda: ops.norm(A, 2, axis=(0, 1)), "give one axis"),
        (lambda: ops.norm(A, 3, axis=0), "ord 3 is not one of"),
        (lambda: ops.argmax(A, (0, 1)), "axis must be one number"),
        (lambda: ops.zeros((None, 2)), "number of samples is not known"),
        (lambda: ops.arange(ops.sum(A)), "arange: give numbers"),
        (lambda: ops.full_like(A, B), "must be a number"),
        (lambda: ops.softmax(A, 3), "axis 3 is out of range"),
        (lambda: ops.elu(A, -1.0), "alpha must not be negative"),
        (lambda: ops.one_hot([0], 0), "no number of classes"),
        (lambda: ops.dropout(A, 1.5), "rate 1.5 is not from 0 to 1"),
        (lambda: activations.gelu(A, approximated=True), "gelu: it takes .*, not"),
        (lambda: activations.threshold(A, 1.0), "default_value must be a number"),
        (lambda: activations.elu(A, 1.0, 2.0), "2 arguments, but it takes"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_gradient_by_equal_elements_follows_tensorflow() -> None:
    a, b = nn.Variable(np.array([1.0, 2.0])), nn.Variable(np.array([1.0, 3.0]))
    with nn.GradientTape(persistent=True) as tape:
        largest, smallest = ops.maximum(a, b), ops.minimum(a, b)
        shared = ops.max(ops.concatenate([a, b, [1.0, 3.0]]))
    assert [each.numpy().tolist() for each in tape.gradient(largest, [a, b])] == [[1, 0], [0, 1]]
    assert [each.numpy().tolist() for each in tape.gradient(smallest, [a, b])] == [[1, 1], [0, 0]]
    assert tape.gradient(shared, b).numpy().tolist() == [0, 0.5]


def test_a_slope_where_it_is_not_chosen_does_not_spoil_the_gradient() -> None:
    x = nn.Variable(np.array([0.0, 4.0]))
    with nn.GradientTape() as tape:
        y = ops.where(x > 0, ops.sqrt(ops.where(x > 0, x, 1.0)), 0.0) + x**0.0 + x**3.0
    assert tape.gradient(y, x).numpy().tolist() == [0, 0.25 + 48]


def test_erf_is_within_1e_6_in_float32_and_exact_in_float64() -> None:
    x = np.concatenate([np.linspace(-6, 6, 200_003), [0, 1e-30, -1e-8, 1e8, -np.inf, np.inf]])
    exact = np.array([math.erf(each) for each in x])
    single = x.astype(np.float32)
    expected = np.array([math.erf(each) for each in single.astype(np.float64)])
    found = erf(single, np.empty_like(single))
    np.testing.assert_allclose(found, expected, rtol=5e-7, atol=0)
    assert np.abs(found).max() == 1
    assert erf(single, single) is single
    np.testing.assert_array_equal(single, found)
    np.testing.assert_array_equal(erf(x, np.empty_like(x)), exact)
    assert np.isnan(erf(np.float32([np.nan]), np.empty(1, np.float32)))


@pytest.mark.parametrize("name", sorted(set(activations.FUSED) - {"linear", "rectifier", "exponential"}))
def test_activations_have_one_function_in_ops_and_one_on_arrays(name: str) -> None:
    arguments = (0.5, -1.0) if name == "threshold" else (True,) if name == "gelu" else ()
    x = np.linspace(-5, 5, 24, dtype=np.float32).reshape(4, 6)
    found = getattr(ops, name)(x, *arguments)
    np.testing.assert_array_equal(found.numpy(), getattr(activations, name)(x, *arguments))
    assert activations.get(name) is getattr(activations, name)
    assert activations.serialize(activations.get(name)) == name
    with np.errstate(all="raise", under="ignore"):
        large = getattr(ops, name)(np.float32([-300, -88, 0, 88, 300]), *arguments)
    assert not np.isnan(large.numpy()).any()


def test_a_shape_is_known_but_for_the_number_of_samples() -> None:
    graph = trace(lambda x: ops.reshape(x, (ops.shape(x)[0], -1)), Spec((None, 3, 4)))
    assert graph.specs()[graph.outputs[0]].shape == (None, 12)
    assert ops.shape(A) == (2, 3, 4)


def test_sparsemax_of_two_is_a_clipped_line_and_of_many_the_nearest_point_of_the_simplex() -> None:
    z = np.linspace(-3, 3, 41, dtype=np.float32)
    found = np.asarray(activations.sparsemax(np.stack([z, np.zeros_like(z)], axis=1)))
    np.testing.assert_allclose(found[:, 0], np.clip((z + 1) / 2, 0, 1), atol=1e-6)
    rng = np.random.default_rng(0)
    points = rng.standard_normal((20, 7)).astype(np.float32)
    nearest = np.asarray(activations.sparsemax(points))
    np.testing.assert_allclose(nearest.sum(axis=1), 1, rtol=1e-6)
    distances = ((points - nearest) ** 2).sum(axis=1)
    for other in rng.dirichlet(np.ones(7), 500):
        assert (((points - other) ** 2).sum(axis=1) >= distances - 1e-6).all()
