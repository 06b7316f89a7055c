"""Optimizers, schedules, constraints and regularizers next to those of real Keras."""

import numpy as np
import pytest

from storage.layout import Layout
from tests.unit.nn.stepping import trajectory
from workers import nn

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept:DeprecationWarning"
    ),  # Keras's
]
keras = pytest.importorskip("keras", reason="Keras is not installed: make peers installs it")

STEPS = 15
SHAPES = {"kernel": (4, 3), "bias": (3,), "embeddings": (5, 2, 2)}
COMMON = {
    "plain": {},
    "decay": {"weight_decay": 0.05},
    "clipnorm": {"clipnorm": 0.5},
    "global_clipnorm": {"global_clipnorm": 0.5},
    "clipvalue": {"clipvalue": 0.2},
    "ema": {"use_ema": True, "ema_momentum": 0.8},
    "ema_overwrites": {"use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 3},
    "unscaled": {"loss_scale_factor": 8.0},
    "accumulates": {"gradient_accumulation_steps": 3},
    "all": {
        "weight_decay": 0.05,
        "global_clipnorm": 0.5,
        "use_ema": True,
        "ema_overwrite_frequency": 2,
        "loss_scale_factor": 2.0,
        "gradient_accumulation_steps": 2,
    },
}
OWN = {
    "SGD": [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}],
    "Adam": [{}, {"amsgrad": True, "beta_1": 0.8, "epsilon": 1e-4}],
    "AdamW": [{}],
    "RMSprop": [{}, {"momentum": 0.7}, {"centered": True, "rho": 0.8}, {"momentum": 0.7, "centered": True}],
    "Adagrad": [{}, {"initial_accumulator_value": 0.5}],
    "Adadelta": [{}, {"rho": 0.8}],
    "Adamax": [{}, {"beta_1": 0.7}],
    "Nadam": [{}, {"beta_2": 0.9}],
    "Lion": [{}, {"beta_1": 0.7}],
    "Ftrl": [
        {},
        {"l1_regularization_strength": 0.01, "beta": 0.2},
        {"learning_rate_power": -0.4, "l2_regularization_strength": 0.1},
        {"l2_shrinkage_regularization_strength": 0.1},
    ],
    "Lamb": [{}, {"beta_2": 0.9}],
}
CASES = [(name, own, common) for name, settings in OWN.items() for own in settings for common in COMMON]


def start(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def constraint_of(library, name):
    return {"kernel": library.constraints.MaxNorm(1.0), "bias": library.constraints.NonNeg()}.get(name)


def close(found, expected):
    """Equal but for rounding, which is of the size of the largest number."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize(("name", "own", "common"), CASES)
def test_weights_and_state_follow_keras(name, own, common):
    settings = {"learning_rate": 0.05, **own, **COMMON[common]}
    theirs, ours = getattr(keras.optimizers, name)(**settings), getattr(nn.optimizers, name)(**settings)
    flat = getattr(nn.optimizers, name)(**settings)
    values = start(0)
    their_variables = [keras.Variable(v, name=n) for n, v in values.items()]
    our_variables = [nn.Variable(v, name=n) for n, v in values.items()]
    for their, our in zip(their_variables, our_variables, strict=True):
        their.constraint, our.constraint = constraint_of(keras, our.name), constraint_of(nn, our.name)
    layout = Layout.of(SHAPES)
    grads = [{n: g * 10.0 ** (step % 3 - 1) for n, g in start(step + 1).items()} for step in range(STEPS)]

    def flattened(arrays):
        buffer = np.zeros(layout.length, np.float32)
        for n, view in layout.views(buffer).items():
            view[...] = arrays[n]
        return buffer

    rules = nn.optimizers.for_model(flat, layout, our_variables)
    weights, slots = trajectory(rules, flattened(values), map(flattened, grads), in_place=True)
    for step, grad in enumerate(grads):
        theirs.apply([keras.ops.convert_to_tensor(g) for g in grad.values()], their_variables)
        ours.apply([*grad.values()], our_variables)
        for their, our in zip(their_variables, our_variables, strict=True):
            close(our.numpy(), their)
            close(layout.views(weights[step])[our.name], their)
    assert [v.shape for v in ours.variables] == [tuple(v.shape) for v in theirs.variables]
    for their, our in zip(theirs.variables, ours.variables, strict=True):
        close(our.numpy(), their)
    for slot, values in slots.items():
        for variable, view in zip(ours.slot_variables[slot], layout.views(values).values(), strict=True):
            close(view, variable.numpy())
    config = theirs.get_config()
    assert config.keys() == ours.get_config().keys()
    assert getattr(nn.optimizers, name)(**config).get_config() == config


@pytest.mark.parametrize("name", OWN)
def test_settings_have_the_defaults_of_keras(name):
    ours, theirs = getattr(nn.optimizers, name)().get_config(), getattr(keras.optimizers, name)().get_config()
    assert ours.pop("name") == theirs.pop("name").rstrip("_0123456789")  # Keras numbers them
    assert ours.pop("learning_rate") == pytest.approx(
        theirs.pop("learning_rate"), rel=1e-6
    )  # a float32 there
    assert ours == theirs


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ExponentialDecay", {"initial_learning_rate": 0.1, "decay_steps": 7, "decay_rate": 0.9}),
        ("InverseTimeDecay", {"initial_learning_rate": 0.1, "decay_steps": 7, "decay_rate": 0.9}),
        ("PolynomialDecay", {"initial_learning_rate": 0.1, "decay_steps": 70, "power": 2.0, "cycle": True}),
        ("PiecewiseConstantDecay", {"boundaries": [5, 50], "values": [0.3, 0.2, 0.1]}),
        (
            "CosineDecay",
            {"initial_learning_rate": 0.0, "decay_steps": 90, "warmup_target": 0.1, "warmup_steps": 11},
        ),
        ("CosineDecayRestarts", {"initial_learning_rate": 0.1, "first_decay_steps": 13, "t_mul": 1.0}),
        (
            "CosineDecayRestarts",
            {"initial_learning_rate": 0.1, "first_decay_steps": 17, "t_mul": 1.5, "m_mul": 0.8, "alpha": 0.1},
        ),
    ],
)
def test_schedules_follow_keras(name, settings):
    theirs = getattr(keras.optimizers.schedules, name)(**settings)
    ours = getattr(nn.optimizers.schedules, name)(**settings)
    for step in range(200):
        assert ours(step) == pytest.approx(float(theirs(step)), rel=1e-5, abs=1e-7), step
    assert ours.get_config() == theirs.get_config()
    again = nn.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(theirs))
    assert again.get_config() == ours.get_config()


@pytest.mark.parametrize("name", ["MaxNorm", "MinMaxNorm", "NonNeg", "UnitNorm"])
def test_constraints_equal_keras(name):
    w = start(0)["kernel"]
    theirs, ours = getattr(keras.constraints, name)(), getattr(nn.constraints, name)()
    close(ours(w), theirs(w))
    assert ours.get_config() == theirs.get_config()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("L1", {}),
        ("L2", {"l2": 0.5}),
        ("L1L2", {"l1": 0.1, "l2": 0.2}),
        ("OrthogonalRegularizer", {"factor": 0.3}),
        ("OrthogonalRegularizer", {"factor": 0.3, "mode": "columns"}),
    ],
)
def test_regularizers_equal_keras(name, settings):
    w = start(0)["kernel"]
    theirs, ours = getattr(keras.regularizers, name)(**settings), getattr(nn.regularizers, name)(**settings)
    close(float(ours(nn.Variable(w))), theirs(keras.ops.convert_to_tensor(w)))
    assert ours.get_config() == pytest.approx(theirs.get_config())


INITIALIZERS = """
    Zeros Ones Constant RandomNormal RandomUniform TruncatedNormal Orthogonal VarianceScaling
    GlorotNormal GlorotUniform HeNormal HeUniform LecunNormal LecunUniform
"""


@pytest.mark.parametrize("name", INITIALIZERS.split())
def test_initializers_have_the_spread_and_the_config_of_keras(name):
    keras.utils.set_random_seed(0)
    theirs, ours = getattr(keras.initializers, name)(), getattr(nn.initializers, name)()
    expected, found = np.asarray(theirs((120, 80))), ours((120, 80), np.random.default_rng(0))
    for of in (np.std, np.max, np.min):
        assert of(found) == pytest.approx(of(expected), rel=0.03 if of is np.std else 0.2, abs=1e-6)
    assert ours.get_config() == theirs.get_config()


@pytest.mark.parametrize("frequency", [None, 3])
@pytest.mark.parametrize("callback", [None, False, True])
def test_fit_ends_with_the_averages_where_keras_does(frequency, callback):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 3)).astype("float32")
    y, kernel = x[:, :1] * 2 + 1, rng.standard_normal((3, 1)).astype("float32")
    found = []
    for lib in (nn, keras):
        model = lib.Sequential([lib.Input((3,)), lib.layers.Dense(1)])
        optimizer = lib.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.7, ema_overwrite_frequency=frequency)
        model.compile(optimizer, "mse")
        model.set_weights([kernel, np.zeros(1, "float32")])
        callbacks = [] if callback is None else [lib.callbacks.SwapEMAWeights(swap_on_epoch=callback)]
        model.fit(x, y, 4, 3, shuffle=False, verbose=0, validation_data=(x[:8], y[:8]), callbacks=callbacks)
        found.append(model.get_weights())
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
