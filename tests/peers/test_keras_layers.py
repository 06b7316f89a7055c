"""Layers on images and steps, and normalization, next to real Keras: outputs, gradients, averages."""

import numpy as np
import pytest

from workers import nn

pytestmark = pytest.mark.peers
jax = pytest.importorskip("jax", reason="JAX is not installed: make peers installs it")
keras = pytest.importorskip("keras", reason="Keras is not installed: make peers installs it")

STEPS, IMAGES = (3, 9, 4), (2, 7, 6, 4)
SAME, SAME_BY_2 = {"padding": "same"}, {"padding": "same", "strides": 2}
CASES = [
    ("Conv1D", STEPS, {"filters": 5, "kernel_size": 3, "padding": "causal", "dilation_rate": 2}),
    ("Conv1D", STEPS, {"filters": 5, "kernel_size": 4, "strides": 3, "padding": "same"}),
    ("Conv1D", STEPS, {"filters": 6, "kernel_size": 3, "groups": 2, "activation": "relu"}),
    ("Conv2D", IMAGES, {"filters": 6, "kernel_size": (3, 2), "groups": 2, "activation": "gelu"}),
    ("Conv2D", IMAGES, {"filters": 5, "kernel_size": 2, "dilation_rate": (2, 3), **SAME}),
    ("Conv2D", IMAGES, {"filters": 5, "kernel_size": (3, 2), "use_bias": False, **SAME_BY_2}),
    ("Conv2D", (2, 6, 5, 1), {"filters": 5, "kernel_size": 3, **SAME}),
    ("Conv3D", (2, 4, 5, 3, 2), {"filters": 3, "kernel_size": (2, 3, 2), **SAME_BY_2}),
    *(("Conv1DTranspose", STEPS, {"filters": 3, "kernel_size": k, "strides": 2}) for k in (1, 3)),
    *(("Conv2DTranspose", IMAGES, {"filters": 3, "kernel_size": k, **SAME_BY_2}) for k in (1, 2, 3, 4)),
    ("Conv2DTranspose", IMAGES, {"filters": 3, "kernel_size": 3, "dilation_rate": 2}),
    ("Conv2DTranspose", IMAGES, {"filters": 3, "kernel_size": 3, "strides": 3, "output_padding": 2}),
    ("Conv2DTranspose", IMAGES, {"filters": 3, "kernel_size": 3, "output_padding": 1, **SAME_BY_2}),
    ("DepthwiseConv1D", STEPS, {"kernel_size": 3, "depth_multiplier": 2, **SAME}),
    ("DepthwiseConv2D", IMAGES, {"kernel_size": 3, **SAME_BY_2}),
    ("DepthwiseConv2D", IMAGES, {"kernel_size": (2, 3), "depth_multiplier": 3, "activation": "tanh"}),
    ("SeparableConv1D", STEPS, {"filters": 5, "kernel_size": 3, **SAME}),
    ("SeparableConv2D", IMAGES, {"filters": 5, "kernel_size": 3, "depth_multiplier": 2}),
    *(
        (name, STEPS, kwargs)
        for name in ("MaxPooling1D", "AveragePooling1D")
        for kwargs in ({"pool_size": 2}, {"pool_size": 3, **SAME_BY_2})
    ),
    *(
        (name, IMAGES, kwargs)
        for name in ("MaxPooling2D", "AveragePooling2D")
        for kwargs in ({"pool_size": 2, **SAME}, {"pool_size": (3, 2), "strides": (1, 2)})
    ),
    *((f"Global{kind}Pooling1D", STEPS, {}) for kind in ("Max", "Average")),
    *((f"Global{kind}Pooling2D", IMAGES, {"keepdims": True}) for kind in ("Max", "Average")),
    ("BatchNormalization", IMAGES, {}),
    ("BatchNormalization", STEPS, {"axis": 1, "momentum": 0.8, "epsilon": 0.01, "scale": False}),
    ("LayerNormalization", IMAGES, {}),
    ("LayerNormalization", IMAGES, {"axis": [1, 3], "center": False}),
    ("RMSNormalization", IMAGES, {}),
    ("RMSNormalization", STEPS, {"axis": [1, 2]}),
    ("GroupNormalization", IMAGES, {"groups": 2}),
    ("GroupNormalization", IMAGES, {"groups": -1}),
    ("GroupNormalization", (2, 6, 5), {"groups": 3, "axis": 1}),
    ("UnitNormalization", IMAGES, {"axis": [1, 2]}),
    ("UnitNormalization", STEPS, {}),
    ("ZeroPadding1D", STEPS, {"padding": (1, 2)}),
    ("ZeroPadding2D", IMAGES, {"padding": ((1, 2), (0, 3))}),
    ("Cropping1D", STEPS, {"cropping": (1, 2)}),
    ("Cropping2D", IMAGES, {"cropping": ((1, 2), (0, 3))}),
    ("UpSampling1D", STEPS, {"size": 3}),
    ("UpSampling2D", IMAGES, {"size": (2, 3)}),
]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("name", "shape", "kwargs"), CASES)
def test_outputs_gradients_and_what_is_assigned_are_those_of_keras(name, shape, kwargs, training):
    rng = np.random.default_rng(3)
    x = rng.standard_normal(shape).astype(np.float32)
    ours, theirs = getattr(nn.layers, name)(**kwargs), getattr(keras.layers, name)(**kwargs)
    ours(x), theirs.build(shape)
    assert [v.name for v in ours.weights] == [v.name for v in theirs.weights]
    assert [v.shape for v in ours.weights] == [v.shape for v in theirs.weights]
    weights = [rng.uniform(0.2, 1.5, v.shape).astype(np.float32) for v in ours.weights]
    ours.set_weights(weights)
    theirs.set_weights(weights)
    factors = rng.standard_normal(ours(x).shape).astype(np.float32)
    takes_training = {"training": training} if "BatchNorm" in name else {}

    def total(trainable, given):
        fixed = [v.value for v in theirs.non_trainable_variables]
        y, changed = theirs.stateless_call(trainable, fixed, given, **takes_training)
        return (y * factors).sum(), (y, changed)

    values = [v.value for v in theirs.trainable_variables]
    with jax.default_matmul_precision("highest"):
        (expected, given), (y, changed) = jax.grad(total, (0, 1), has_aux=True)(values, x)

    source = nn.ops.convert_to_tensor(x)
    with nn.GradientTape() as tape:
        tape.watch(source)
        result = ours(source, training=training)
        summed = nn.ops.sum(result * factors)
    *found, dx = tape.gradient(summed, [*ours.trainable_variables, source])
    np.testing.assert_allclose(result.numpy(), y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dx.numpy(), given, rtol=1e-4, atol=1e-4)
    for variable, gradient, right in zip(ours.trainable_variables, found, expected, strict=True):
        np.testing.assert_allclose(gradient.numpy(), right, rtol=1e-4, atol=1e-4, err_msg=variable.path)
    for variable, right in zip(ours.non_trainable_variables, changed, strict=True):
        np.testing.assert_allclose(variable.numpy(), right, rtol=1e-5, atol=1e-6, err_msg=variable.path)


def test_masked_places_count_as_in_keras():
    rng = np.random.default_rng(4)
    x = rng.standard_normal(STEPS).astype(np.float32)
    mask = rng.random(STEPS[:2]) < 0.6
    for name in ("BatchNormalization", "GlobalAveragePooling1D"):
        ours, theirs = getattr(nn.layers, name)(), getattr(keras.layers, name)()
        training = {"training": True} if name == "BatchNormalization" else {}
        expected = theirs(x, mask=mask, **training)
        np.testing.assert_allclose(ours(x, mask=mask, **training).numpy(), expected, rtol=1e-4, atol=1e-5)
        for a, b in zip(ours.weights, theirs.weights, strict=True):
            np.testing.assert_allclose(a.numpy(), b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("name", "shape", "kwargs"), CASES)
def test_the_settings_are_those_of_keras(name, shape, kwargs):
    """A layer of ours takes the config of Keras's, but for its own ways to write dtypes and objects."""
    theirs = getattr(keras.layers, name)(**kwargs).get_config()
    ours = getattr(nn.layers, name)(**kwargs).get_config()
    assert set(theirs) - {"dtype"} <= set(ours)
    for key, value in ours.items():
        if isinstance(theirs.get(key), tuple | list):
            assert np.array_equal(np.array(value), np.array(theirs[key])), key
        elif isinstance(theirs.get(key), bool | int | float | str) and key != "name":
            assert value == theirs[key], key
