"""Real Keras computes with JAX, the lightest of its backends that has all of it; else with TensorFlow."""

import os
from importlib.util import find_spec

os.environ.setdefault("KERAS_BACKEND", "jax" if find_spec("jax") else "tensorflow")
