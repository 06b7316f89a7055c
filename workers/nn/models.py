"""`nn.models`: models and what makes them, under Keras's names."""

from __future__ import annotations

from workers.nn.model import Model
from workers.nn.saving.api import load_model, model_from_json
from workers.nn.saving.api import save as save_model
from workers.nn.saving.cloning import clone_model
from workers.nn.sequential import Sequential

__all__ = ["Model", "Sequential", "clone_model", "load_model", "model_from_json", "save_model"]
