"""`nn.callbacks`: what is done between epochs and batches, under Keras's names and with its defaults."""

from __future__ import annotations

from workers.nn.callbacks.averaging import SwapEMAWeights
from workers.nn.callbacks.backup import BackupAndRestore
from workers.nn.callbacks.base import Callback, CallbackList
from workers.nn.callbacks.checkpoints import ModelCheckpoint
from workers.nn.callbacks.logs import CSVLogger, History, LambdaCallback
from workers.nn.callbacks.progress import ProgbarLogger
from workers.nn.callbacks.rates import LearningRateScheduler, ReduceLROnPlateau
from workers.nn.callbacks.stopping import EarlyStopping, TerminateOnNaN
from workers.nn.callbacks.tensorboard import TensorBoard

__all__ = [
    "BackupAndRestore",
    "CSVLogger",
    "Callback",
    "CallbackList",
    "EarlyStopping",
    "History",
    "LambdaCallback",
    "LearningRateScheduler",
    "ModelCheckpoint",
    "ProgbarLogger",
    "ReduceLROnPlateau",
    "SwapEMAWeights",
    "TensorBoard",
    "TerminateOnNaN",
]
