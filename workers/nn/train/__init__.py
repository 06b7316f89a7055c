"""`nn.train`: checkpoints of any structure, under TensorFlow's names."""

from __future__ import annotations

from workers.nn.saved_model import SavedModelBuilder
from workers.nn.train.checkpoint import Checkpoint
from workers.nn.train.estimator import (
    Estimator,
    EstimatorSpec,
    ModeKeys,
    RunConfig,
    Scaffold,
    get_global_step,
    get_or_create_global_step,
)
from workers.nn.train.manager import CheckpointManager
from workers.nn.train.reader import (
    CheckpointReader,
    latest_checkpoint,
    list_variables,
    load_checkpoint,
    load_variable,
)
from workers.nn.train.saver import ImportedGraph, Saver, import_graph

__all__ = [
    "Checkpoint",
    "CheckpointManager",
    "CheckpointReader",
    "Estimator",
    "EstimatorSpec",
    "ImportedGraph",
    "ModeKeys",
    "RunConfig",
    "SavedModelBuilder",
    "Saver",
    "Scaffold",
    "get_global_step",
    "get_or_create_global_step",
    "import_graph",
    "latest_checkpoint",
    "list_variables",
    "load_checkpoint",
    "load_variable",
]
