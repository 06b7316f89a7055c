"""Real Keras computes with JAX: the lightest of its backends that has all of it."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")
