"""Real TensorFlow and Keras 2 (tf_keras) read our V2 checkpoints and train on, and we do with theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from storage.formats.tensor_bundle import DTYPES, open_bundle, write_bundle
from workers import nn
from workers.nn.saving.tensorflow import save_checkpoint

tf_keras = pytest.importorskip("tf_keras", reason="tf_keras is not installed: make peers installs it")
tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed: make peers installs it")
keras = pytest.importorskip("keras", reason="Keras is not installed: make peers installs it")

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]  # TensorFlow's own, which are many

RNG = np.random.default_rng(0)
SEQUENCE = RNG.random((16, 7, 8)).astype("float32")
TOKENS = RNG.integers(0, 11, (16, 7)).astype("int32")
FLAT = RNG.random((16, 6)).astype("float32")
IMAGES = RNG.random((16, 8, 8, 2)).astype("float32")


def stack(keras: Any) -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, activation="relu"),
            layers.Dropout(0.0),
            layers.LayerNormalization(epsilon=1e-3),
            layers.Dense(3),
        ]
    )


def normalized(keras: Any) -> Any:
    layers = keras.layers
    first = [layers.Dense(5, activation="tanh"), layers.BatchNormalization()]
    return keras.Sequential([keras.Input((6,)), *first, layers.Dense(3)])


def branches(keras: Any) -> Any:
    layers = keras.layers
    x, other = keras.Input((6,)), keras.Input((6,))
    shared = layers.Dense(4, activation="relu")
    deep = layers.Dense(4, activation="tanh")(layers.Dense(5, activation="tanh")(x))
    h = layers.Concatenate()([shared(x), shared(other), deep])
    return keras.Model([x, other], layers.Dense(3)(layers.Add()([layers.Dense(6)(h), layers.Dense(6)(deep)])))


def convolution(keras: Any) -> Any:
    layers = keras.layers
    x = keras.Input((8, 8, 2))
    h = layers.SeparableConv2D(4, 3)(layers.Conv2D(4, 3, activation="relu", padding="same")(x))
    h = layers.DepthwiseConv2D(2)(layers.Conv2DTranspose(3, 2)(h))
    return keras.Model(x, layers.Dense(3)(layers.Flatten()(layers.MaxPooling2D()(h))))


def recurrence(keras: Any) -> Any:
    layers = keras.layers
    x = keras.Input((7,), dtype="int32")
    h = layers.LSTM(5, return_sequences=True)(layers.Embedding(11, 6)(x))
    h = layers.TimeDistributed(layers.Dense(4))(layers.SimpleRNN(4, return_sequences=True)(h))
    return keras.Model(x, layers.Dense(3)(layers.Bidirectional(layers.GRU(4))(h)))


def attention(keras: Any) -> Any:
    layers = keras.layers
    x = keras.Input((7, 8))
    h = layers.Add()([x, layers.MultiHeadAttention(2, 4)(x, x)])
    return keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling1D()(h)))


def nested(keras: Any) -> Any:
    layers = keras.layers
    inner = keras.Sequential([keras.Input((5,)), layers.Dense(4, activation="relu"), layers.Dense(4)])
    x = keras.Input((6,))
    h = inner(layers.Dense(5)(x))
    return keras.Model(x, layers.Dense(3)(layers.Concatenate()([h, layers.Dense(2)(h)])))


def subclassed(keras: Any) -> Any:
    class Net(keras.Model):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.first = keras.layers.Dense(5, activation="relu")
            self.blocks = [keras.layers.Dense(5, activation="tanh") for _ in range(2)]
            self.heads = {"a": keras.layers.Dense(3)}

        def call(self, x: Any) -> Any:
            x = self.first(x)
            for block in self.blocks:
                x = block(x)
            return self.heads["a"](x)

    return Net()


MODELS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "stack": (stack, FLAT),
    "normalized": (normalized, FLAT),
    "branches": (branches, [FLAT, FLAT[::-1].copy()]),
    "convolution": (convolution, IMAGES),
    "recurrence": (recurrence, TOKENS),
    "attention": (attention, SEQUENCE),
    "nested": (nested, FLAT),
    "subclassed": (subclassed, FLAT),
}
TARGETS = RNG.random((16, 3)).astype("float32")


def train(model: Any, x: Any, epochs: int) -> None:
    model.fit(x, TARGETS, batch_size=16, epochs=epochs, shuffle=False, verbose=0)


def check_same(ours: Any, theirs: Any, x: Any, tolerance: float) -> None:
    np.testing.assert_allclose(
        ours.predict(x, verbose=0), theirs.predict(x, verbose=0), rtol=0, atol=tolerance
    )


def ready(keras: Any, make: Callable[[Any], Any], x: Any, optimizer: Callable[[Any], Any]) -> Any:
    """A built model, with an optimizer that is built."""
    model = make(keras)
    model.compile(optimizer(keras.optimizers), "mse")
    model.predict(x, verbose=0)
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_row_29_models_pass_to_keras_2_and_back_with_all_that_training_needs(
    tmp_path: Path, name: str
) -> None:
    make, x = MODELS[name]

    def sgd(optimizers: Any) -> Any:
        return optimizers.SGD(0.05, momentum=0.9)

    ours = ready(nn, make, x, sgd)
    train(ours, x, 3)
    ours.save_weights(str(tmp_path / "ours.index"))
    theirs = ready(tf_keras, make, x, sgd)
    theirs.load_weights(tmp_path / "ours").assert_consumed()
    assert tf.train.latest_checkpoint(tmp_path) == str(tmp_path / "ours")
    check_same(ours, theirs, x, 2e-6)
    for each in (ours, theirs):
        train(each, x, 3)
    check_same(ours, theirs, x, 1e-5)
    theirs.save_weights(tmp_path / "theirs")
    back = ready(nn, make, x, sgd)
    back.load_weights(tmp_path / "theirs").assert_consumed()
    check_same(back, theirs, x, 2e-6)
    for each in (back, theirs):
        train(each, x, 3)
    check_same(back, theirs, x, 1e-5)


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda o: o.SGD(0.05),
    "Nesterov": lambda o: o.SGD(0.05, momentum=0.9, nesterov=True),
    "Adam": lambda o: o.Adam(0.01),
    "amsgrad": lambda o: o.Adam(0.01, amsgrad=True),
    "AdamW": lambda o: o.AdamW(0.01),
    "Adamax": lambda o: o.Adamax(0.01),
    "Adagrad": lambda o: o.Adagrad(0.1),
    "Adadelta": lambda o: o.Adadelta(1.0),
    "RMSprop": lambda o: o.RMSprop(0.01),
    "centered": lambda o: o.RMSprop(0.01, momentum=0.9, centered=True),
    "Ftrl": lambda o: o.Ftrl(0.1),
    "Lion": lambda o: o.Lion(0.01),
    "schedule": lambda o: o.Adam(o.schedules.ExponentialDecay(0.01, 5, 0.5)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_row_29_each_optimizer_goes_on_in_keras_2_and_back(tmp_path: Path, name: str) -> None:
    make = OPTIMIZERS[name]
    ours = ready(nn, stack, FLAT, make)
    train(ours, FLAT, 4)
    ours.save_weights(str(tmp_path / "ours.index"))
    theirs = ready(tf_keras, stack, FLAT, make)
    theirs.load_weights(tmp_path / "ours").assert_consumed()
    assert int(theirs.optimizer.iterations) == 4
    for each in (ours, theirs):
        train(each, FLAT, 3)
    check_same(ours, theirs, FLAT, 1e-5)
    theirs.save_weights(tmp_path / "theirs")
    back = ready(nn, stack, FLAT, make)
    back.load_weights(tmp_path / "theirs").assert_consumed()
    for each in (back, theirs):
        train(each, FLAT, 3)
    check_same(back, theirs, FLAT, 1e-5)


@pytest.mark.parametrize("name", ["Nadam", "average"])
def test_row_29_state_passes_also_where_keras_2_goes_on_otherwise(tmp_path: Path, name: str) -> None:
    """Nadam of Keras 2 multiplies its product once for each variable; its `fit` ends with the averages."""

    def make(optimizers: Any) -> Any:
        return optimizers.Nadam(0.01) if name == "Nadam" else optimizers.Adam(0.01, use_ema=True)

    ours = ready(nn, stack, FLAT, make)
    train(ours, FLAT, 4)
    ours.save_weights(str(tmp_path / "ours.index"))
    theirs = ready(tf_keras, stack, FLAT, make)
    theirs.load_weights(tmp_path / "ours").assert_consumed()
    theirs.save_weights(tmp_path / "theirs")
    back = ready(nn, stack, FLAT, make)
    back.load_weights(tmp_path / "theirs").assert_consumed()
    for before, after in zip(ours.optimizer.variables, back.optimizer.variables, strict=True):
        assert np.array_equal(np.float32(before.numpy()), np.float32(after.numpy())), before.path


OLDER: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "SGD": (lambda o: o.SGD(0.05, momentum=0.9), lambda o: o.SGD(0.05, momentum=0.9)),
    "Adam": (lambda o: o.Adam(0.01), lambda o: o.Adam(0.01)),
    "Adamax": (lambda o: o.Adamax(0.01), lambda o: o.Adamax(0.01)),
    "Adagrad": (lambda o: o.Adagrad(0.1), lambda o: o.Adagrad(0.1)),
    "Adadelta": (lambda o: o.Adadelta(1.0), lambda o: o.Adadelta(1.0)),
}


@pytest.mark.parametrize("name", OLDER)
def test_row_29_slots_of_optimizers_before_tensorflow_2_11_are_found(tmp_path: Path, name: str) -> None:
    older, newer = OLDER[name]
    theirs = stack(tf_keras)
    theirs.compile(older(tf_keras.optimizers.legacy), "mse")
    train(theirs, FLAT, 4)
    theirs.save_weights(tmp_path / "theirs")
    ours = ready(nn, stack, FLAT, newer)
    status = ours.load_weights(tmp_path / "theirs").expect_partial()
    status.assert_existing_objects_matched()
    assert {path.partition("/")[0] for path in status.unused} <= {"optimizer"}
    assert not any(".OPTIMIZER_SLOT" in path for path in status.unused), status.unused
    for each in (ours, theirs):
        train(each, FLAT, 3)
    check_same(ours, theirs, FLAT, 1e-5)
    other = ready(nn, stack, FLAT, lambda o: o.RMSprop(0.01, momentum=0.5, centered=True))
    status = other.load_weights(tmp_path / "theirs").expect_partial()
    assert {path.partition("/")[0] for path in status.restored} == {"variables"}


def test_row_29_momentum_of_another_optimizer_is_not_taken(tmp_path: Path) -> None:
    theirs = stack(tf_keras)
    theirs.compile(tf_keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    train(theirs, FLAT, 4)
    theirs.save_weights(tmp_path / "theirs")
    for make in (lambda o: o.Adam(), lambda o: o.Lion(), lambda o: o.RMSprop(momentum=0.9)):
        ours = ready(nn, stack, FLAT, make)
        status = ours.load_weights(tmp_path / "theirs").expect_partial()
        assert {path.partition("/")[0] for path in status.restored} == {"variables"}
        assert len([path for path in status.unused if "_variables/" in path]) == 6
        assert ours.optimizer.steps == 0


def of_every_type() -> dict[str, Any]:
    values = {
        f"kind/{dtype.name}": RNG.integers(0, 2, (3, 5)).astype(dtype)
        for code, dtype in DTYPES.items()
        if code not in (31, 32, 33)  # which TensorFlow's own reader gives no arrays of
    }
    return values | {"empty": np.zeros((0, 7)), "scalar": np.float16(1.5)}


def test_row_19_tensorflow_reads_every_type_that_we_write(tmp_path: Path) -> None:
    values = of_every_type()
    strings = np.array([[b"", b"\0\xff", "\u00e9".encode()], [b"a" * 300, b"b", b"c"]], object)
    path = str(tmp_path / "ckpt")
    write_bundle(path, values | {"strings": strings, "string": b"one"})
    theirs, ours = tf.train.load_checkpoint(path), nn.train.load_checkpoint(path)
    assert theirs.get_variable_to_shape_map() == ours.get_variable_to_shape_map()
    dtypes = ours.get_variable_to_dtype_map()
    for name, dtype in theirs.get_variable_to_dtype_map().items():
        assert np.dtype(dtype.as_numpy_dtype) == dtypes[name], name
    for name, value in values.items():
        found = theirs.get_tensor(name)
        assert found.dtype == value.dtype
        assert found.tobytes() == np.asarray(value).tobytes(), name
    assert theirs.get_tensor("string") == b"one"
    assert theirs.get_tensor("strings").tolist() == strings.tolist()


def test_row_19_every_type_that_tensorflow_writes_is_read_with_the_same_maps(tmp_path: Path) -> None:
    values = {
        name.replace("/", "_"): tf.Variable(value)
        for name, value in of_every_type().items()
        if "fnuz" not in name  # of which TensorFlow makes no variables
    }
    values["strings"] = tf.Variable(["a", "", "\u00e9" * 200])
    dataset = iter(tf.data.Dataset.range(5))
    path = tf.train.Checkpoint(**values, dataset=dataset, numbers=[tf.Variable(1), tf.Variable(2)]).save(
        str(tmp_path / "ckpt")
    )
    theirs, ours = tf.train.load_checkpoint(path), nn.train.load_checkpoint(path)
    assert theirs.get_variable_to_shape_map() == ours.get_variable_to_shape_map()
    for name, dtype in theirs.get_variable_to_dtype_map().items():
        if dtype == tf.variant:
            continue
        assert np.dtype(dtype.as_numpy_dtype) == ours.get_variable_to_dtype_map()[name], name
        expected, found = theirs.get_tensor(name), ours.get_tensor(name)
        assert np.array_equal(expected, found), name
        assert np.asarray(expected).dtype == np.asarray(found).dtype, name
    open_bundle(path).verify()


def test_row_6_several_files_of_data_and_partitioned_variables(tmp_path: Path) -> None:
    """As a Saver of TensorFlow 1 writes them, each device into a file of its own."""
    v1 = tf.compat.v1
    with tf.Graph().as_default():
        partitioned = {
            "rows": v1.get_variable(
                "rows",
                initializer=tf.constant(RNG.random((7, 3)).astype("float32")),
                partitioner=v1.fixed_size_partitioner(3),
            ),
            "columns": v1.get_variable(
                "columns",
                initializer=tf.constant(RNG.random((2, 300)).astype("float32")),
                partitioner=v1.fixed_size_partitioner(4, axis=1),
            ),
        }
        for i in range(4):
            with tf.device(f"/cpu:{i % 2}"):
                v1.get_variable(f"whole_{i}", initializer=np.full((5, i), i, np.int64))
        config = v1.ConfigProto(device_count={"CPU": 2})
        with v1.Session(config=config) as session:
            session.run(v1.global_variables_initializer())
            expected = {name: session.run(variable.as_tensor()) for name, variable in partitioned.items()}
            path = v1.train.Saver(sharded=True).save(session, str(tmp_path / "model"), global_step=3)
    assert [p.name for p in sorted(tmp_path.glob("*.data-*"))] == [
        f"model-3.data-0000{i}-of-00003"
        for i in range(3)  # no device, and two
    ]
    theirs, ours = tf.train.load_checkpoint(path), nn.train.load_checkpoint(path)
    assert theirs.get_variable_to_shape_map() == ours.get_variable_to_shape_map()
    for name in ours:
        assert np.array_equal(theirs.get_tensor(name), ours.get_tensor(name)), name
    for name, value in expected.items():
        assert np.array_equal(ours.get_tensor(name), value)
    open_bundle(path).verify()
    variable = nn.Variable(np.zeros((7, 3), np.float32), name="rows")
    nn.train.Saver([variable]).restore(nn.train.latest_checkpoint(tmp_path))
    assert np.array_equal(variable.numpy(), expected["rows"])


def test_row_21_checkpoints_of_tensorflow_and_managers_are_gone_on_from(tmp_path: Path) -> None:
    net = subclassed(tf_keras)
    optimizer = tf_keras.optimizers.Adam(0.05)
    step = tf.Variable(0, dtype=tf.int64)
    theirs = tf.train.Checkpoint(
        step=step, optimizer=optimizer, net=net, parts={"a": [tf.Variable([1.0, 2.0])]}
    )
    manager = tf.train.CheckpointManager(theirs, str(tmp_path), max_to_keep=2)
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((net(FLAT) - TARGETS) ** 2)
        variables = net.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        step.assign_add(1)
        manager.save()
    ours = nn.train.Checkpoint(
        step=nn.Variable(np.int64(0)),
        optimizer=nn.optimizers.Adam(0.05),
        net=subclassed(nn),
        parts={"a": [nn.Variable(np.zeros(2, np.float32))]},
    )
    again = nn.train.CheckpointManager(ours, tmp_path, max_to_keep=2)
    assert again.latest_checkpoint == manager.latest_checkpoint
    assert again.checkpoints == manager.checkpoints
    status = ours.restore(again.latest_checkpoint)  # before anything is built
    np.testing.assert_allclose(ours.net(FLAT).numpy(), net(FLAT).numpy(), atol=2e-6)
    with nn.GradientTape() as tape:
        loss = nn.ops.mean(nn.ops.square(ours.net(FLAT) - TARGETS))
    variables = ours.net.trainable_variables
    ours.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
    status.assert_consumed()
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((net(FLAT) - TARGETS) ** 2)
    variables = net.trainable_variables
    optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
    np.testing.assert_allclose(ours.net(FLAT).numpy(), net(FLAT).numpy(), atol=1e-5)
    assert (int(ours.step), int(ours.save_counter), ours.parts["a"][0].numpy().tolist()) == (3, 3, [1.0, 2.0])


def test_row_21_checkpoints_pass_to_tensorflow(tmp_path: Path) -> None:
    def made(keras: Any, train: Any, variable: Callable[[Any], Any]) -> Any:
        net = subclassed(keras)
        net(FLAT)
        optimizer = keras.optimizers.Adam(0.05)
        optimizer.build(net.trainable_variables)
        parts = {"a": [variable(np.zeros(2, np.float32))], "b": variable(np.array([True, False]))}
        return train.Checkpoint(step=variable(np.int64(0)), optimizer=optimizer, net=net, parts=parts)

    def step(checkpoint: Any, tape: Any, mean: Any) -> None:
        with tape() as watched:
            loss = mean((checkpoint.net(FLAT) - TARGETS) ** 2)
        variables = checkpoint.net.trainable_variables
        checkpoint.optimizer.apply_gradients(zip(watched.gradient(loss, variables), variables, strict=True))
        checkpoint.step.assign(checkpoint.step + 1)

    ours = made(nn, nn.train, nn.Variable)
    for _ in range(3):
        step(ours, nn.GradientTape, nn.ops.mean)
    ours.parts["a"][0].assign(np.array([1.5, 2.5], np.float32))
    save_checkpoint(ours, str(tmp_path / "ckpt-3"))
    theirs = made(tf_keras, tf.train, tf.Variable)
    manager = tf.train.CheckpointManager(theirs, str(tmp_path), max_to_keep=3)
    theirs.restore(manager.latest_checkpoint).assert_consumed()
    assert (int(theirs.step), theirs.parts["a"][0].numpy().tolist()) == (3, [1.5, 2.5])
    assert int(theirs.optimizer.iterations) == 3
    for _ in range(3):
        step(ours, nn.GradientTape, nn.ops.mean)
        step(theirs, tf.GradientTape, tf.reduce_mean)
    np.testing.assert_allclose(ours.net(FLAT).numpy(), theirs.net(FLAT).numpy(), atol=1e-5)


def test_section5_a_saved_model_of_keras_2_gives_back_its_adam(tmp_path: Path) -> None:
    """`tf_keras.models.load_model` begins with iteration 0 and without moments."""
    theirs = ready(tf_keras, stack, FLAT, lambda o: o.Adam(0.01))
    train(theirs, FLAT, 4)
    theirs.save(tmp_path / "saved")
    ours = ready(nn, stack, FLAT, lambda o: o.Adam(0.01))
    ours.load_weights(tmp_path / "saved").expect_partial().assert_existing_objects_matched()
    check_same(ours, theirs, FLAT, 2e-6)
    for each in (ours, theirs):
        train(each, FLAT, 3)
    check_same(ours, theirs, FLAT, 1e-5)


def test_section5_the_latest_is_found_without_the_file_that_names_it(tmp_path: Path) -> None:
    variable = tf.Variable(1.0)
    path = [tf.train.Checkpoint(x=variable).write(str(tmp_path / f"ckpt-{i}")) for i in (9, 10)][-1]
    assert tf.train.latest_checkpoint(tmp_path) is None
    assert nn.train.latest_checkpoint(tmp_path) == path


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras was imported with another backend")
@pytest.mark.parametrize("name", MODELS)
def test_row_29_checkpoints_of_keras_3_under_tensorflow_are_read_and_gone_on_from(
    tmp_path: Path, name: str
) -> None:
    make, x = MODELS[name]

    def optimizer(optimizers: Any) -> Any:
        return optimizers.SGD(0.05, momentum=0.9)

    theirs = ready(keras, make, x, optimizer)
    train(theirs, x, 3)
    path = tf.train.Checkpoint(model=theirs, optimizer=theirs.optimizer).save(str(tmp_path / "ckpt"))
    ours = ready(nn, make, x, optimizer)
    status = ours.load_weights(path, root="model").expect_partial()
    status.assert_existing_objects_matched()
    check_same(ours, theirs, x, 2e-6)
    saved = ours.get_weights()
    for each in (ours, theirs):
        train(each, x, 3)
    check_same(ours, theirs, x, 1e-5)
    if name == "subclassed":  # TensorFlow sees nothing of the lists and dicts in one of Keras 3
        return
    same = make(nn)
    structure = nn.train.Checkpoint(model=same, optimizer=optimizer(nn.optimizers))
    same.predict(x, verbose=0)
    structure.optimizer.build(same.trainable_weights)
    structure.restore(path).expect_partial().assert_existing_objects_matched()
    for before, after in zip(saved, same.get_weights(), strict=True):
        assert np.array_equal(before, after)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras was imported with another backend")
@pytest.mark.parametrize("name", [*OPTIMIZERS, "Nadam"])
def test_row_29_each_optimizer_of_keras_3_goes_on(tmp_path: Path, name: str) -> None:
    make = OPTIMIZERS.get(name, lambda o: o.Nadam(0.01))
    theirs = ready(keras, stack, FLAT, make)
    train(theirs, FLAT, 4)
    path = tf.train.Checkpoint(model=theirs, optimizer=theirs.optimizer).save(str(tmp_path / "ckpt"))
    ours = ready(nn, stack, FLAT, make)
    ours.load_weights(path, root="model").expect_partial().assert_existing_objects_matched()
    for each in (ours, theirs):
        train(each, FLAT, 3)
    check_same(ours, theirs, FLAT, 1e-5)
    other = ready(nn, stack, FLAT, OPTIMIZERS["Adagrad" if name != "Adagrad" else "Adam"])
    status = other.load_weights(path, root="model").expect_partial()
    assert {each.partition("/")[0] for each in status.restored} == {"variables"}
