"""Every error that Holdfast raises on purpose.

    HoldfastError                     exit code 1
    |-- ConfigurationError            2   a setting, a job or a place cannot work; also a ValueError
    |   |-- IdentityMismatch          2   the run directory belongs to a job that differs
    |   |-- MissingExtra              2   an optional package is not installed
    |   `-- SharedMemoryTooSmall      2   the state does not fit into the node's shared memory
    |-- StorageError                  75  the storage or the way to it failed: trying again may help
    |   `-- ObjectMissing             75  an object that should be there is not
    |-- CheckpointError               1   a checkpoint cannot be used
    |   |-- CorruptCheckpoint         1   its bytes are not those that were written
    |   `-- IncompatibleCheckpoint    1   it holds other variables than were asked for; also a ValueError
    |-- RunAlive                      4   another coordinator works on this run directory
    |-- Superseded                    4   a newer attempt has taken over
    |-- UserCodeError                 1   the user's model or data function raised
    |-- DataError                     1   input cannot be read, though it was tried again
    |-- DivergenceError               1   the loss or the gradient is not finite
    |-- CrashLoop                     1   restart after restart brought no new step
    `-- InfrastructureError           75  a process of ours died: running again resumes

Each carries one line that says what is wrong, where, and what to do. The exit codes are those of
`holdfast`. Every one of them survives pickling, because actors raise them.
"""

from __future__ import annotations


class HoldfastError(Exception):
    """Base of all errors that Holdfast raises on purpose."""

    exit_code = 1


class ConfigurationError(HoldfastError, ValueError):
    """A setting, a job or a place cannot work as given."""

    exit_code = 2


class IdentityMismatch(ConfigurationError):
    """The run directory belongs to a job that differs in something the bits depend on."""


class MissingExtra(ConfigurationError):
    """An optional package is not installed."""


class SharedMemoryTooSmall(ConfigurationError):
    """The state does not fit into the shared memory of the node."""


class StorageError(HoldfastError):
    """The storage, or the way to it, failed; trying again may help."""

    exit_code = 75


class ObjectMissing(StorageError):
    """An object that should be there is not."""


class CheckpointError(HoldfastError):
    """A checkpoint cannot be used."""


class CorruptCheckpoint(CheckpointError):
    """The bytes found are not the bytes that were written."""


class IncompatibleCheckpoint(CheckpointError, ValueError):
    """The checkpoint holds other variables than were asked for."""


class RunAlive(HoldfastError):
    """Another coordinator is at work on this run directory."""

    exit_code = 4


class Superseded(HoldfastError):
    """A newer attempt has taken this run over."""

    exit_code = 4


class UserCodeError(HoldfastError):
    """The user's model, data or engine raised; the message holds the user's traceback."""


class DataError(HoldfastError):
    """The dataset could not read samples, though that was tried again; the message holds what it raised."""


class DivergenceError(HoldfastError):
    """The loss or the gradient of a step is not finite, and computing it again gives the same bits."""


class CrashLoop(HoldfastError):
    """The job was restarted again and again and made no new step: another restart would not help."""


class InfrastructureError(HoldfastError):
    """A process of ours died or did not answer; running the same command again resumes."""

    exit_code = 75
