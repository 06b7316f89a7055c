"""`Saver`: named variables saved as `path-N`, the last few kept, with the graph of a function beside them.

What TensorFlow 1's `tf.train.Saver` does in a session, done at once: there is no session, and no graph that
everything belongs to. A graph that is to be stored is that of a function, which is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from storage import zarr_arrays
from storage.errors import ConfigurationError, CorruptCheckpoint, IncompatibleCheckpoint
from storage.objects import while_replaced
from workers.nn import graph_json
from workers.nn.graph import trace
from workers.nn.layers.base import Layer, unique_name
from workers.nn.lookup import check
from workers.nn.ops.base import as_operand
from workers.nn.saving import documents, state
from workers.nn.saving.graphs import as_inputs, run
from workers.nn.tensor import Spec, leaves, map_structure
from workers.nn.train.keeping import Rule
from workers.nn.train.manager import Keeper
from workers.nn.train.stored import CONSTANTS, GRAPH, open_stored, save
from workers.nn.train.structure import Structure
from workers.nn.variables import Variable, all_variables

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from workers.nn.graph import Graph

DEFAULT_HOURS = 10000.0


class Saver:
    """Saves variables under their names, and keeps the last `max_to_keep` (None or 0: all).

        saver = nn.train.Saver({"h_est": h, "v_est": v})
        saver.save("model_iter", global_step=7)  # model_iter-7
        saver.restore("model_iter-7")

    `var_list` is a list of variables, a dict of them by the names they are to have, or a layer; without it,
    all variables in use are saved. With `graph`, a function of tensors or `(function, *inputs)` with
    `nn.Input`s or examples, what it computes is stored beside them, for `import_graph`.
    """

    def __init__(
        self,
        var_list: Sequence[Variable] | Mapping[str, Variable] | Layer | None = None,
        max_to_keep: int | None = 5,
        keep_checkpoint_every_n_hours: float = DEFAULT_HOURS,
        *,
        graph: Any = None,
    ) -> None:
        self._var_list = var_list
        self._graph = graph
        self._keeper = Keeper(Rule(max_to_keep or None, keep_checkpoint_every_n_hours))

    @property
    def last_checkpoints(self) -> list[str]:
        """The paths that are kept, the last one at the end."""
        return self._keeper.paths

    def save(
        self,
        save_path: str | os.PathLike[str],
        global_step: int | Variable | None = None,
        *,
        write_meta_graph: bool = True,
    ) -> str:
        """Save as `save_path-global_step`, or as `save_path` without one; returns that path.

        Raises ConfigurationError, StorageError, CheckpointError and Superseded as `Checkpoint.write` does.
        """
        path = str(save_path) if global_step is None else f"{save_path}-{int(global_step)}"
        variables = named(self._var_list)
        graph = None if self._graph is None or not write_meta_graph else _traced(self._graph, variables)
        planned = self._keeper.plan_for(path)
        save(path, Structure(variables), kept=planned.to_json(), graph=graph)
        self._keeper.carry_out(planned)
        return path

    def restore(self, save_path: str | os.PathLike[str]) -> None:
        """In place. Give the variables the values of their names, also from files of TensorFlow's Saver.

        Raises IncompatibleCheckpoint, and changes nothing, where one has none there, or of another shape.
        """
        while_replaced(lambda: self._restore(save_path))

    def _restore(self, save_path: str | os.PathLike[str]) -> None:
        variables = named(self._var_list)
        stored = open_stored(str(save_path))
        status = state.planned(variables, stored.arrays, stored.where).expect_partial()
        if status.missing:
            raise IncompatibleCheckpoint(
                f"{stored.where} holds no {', '.join(status.missing)}: give the Saver the variables that it "
                "holds, in a dict if they have other names there"
            )
        state.assign(variables, stored.arrays, stored.where).expect_partial()


def named(var_list: Any) -> dict[str, Variable]:
    """The variables by the names under which they are saved. ConfigurationError for what is none.

    Of two that have one name, the later gets a number: `variable`, `variable_1`.
    """
    if isinstance(var_list, Layer):
        return var_list.named_variables()
    if isinstance(var_list, Mapping):
        found = dict(var_list)
    else:
        found = {}
        for variable in all_variables() if var_list is None else var_list:
            check(
                isinstance(variable, Variable), f"Saver: {variable!r} is no variable: give nn.Variable(...)"
            )
            found[unique_name(variable.path, {*found})] = variable
    for name, variable in found.items():
        check(isinstance(variable, Variable), f"Saver: {name!r} is {variable!r}, which is no variable")
    return found


@dataclass(frozen=True)
class ImportedGraph:
    """A function that was stored beside its variables: it calls, and gradients follow."""

    variables: Mapping[str, Variable]
    """By the names under which they were saved, with the values they had."""
    graph: Graph

    def __call__(self, *inputs: Any) -> Any:
        """What the function gives, as tensors. ConfigurationError for inputs of another shape."""
        given = [as_operand(each) for each in leaves(inputs)]
        found = run(self.graph, as_inputs(self.graph, given, "the graph"))
        return map_structure(lambda place: found[place], self.graph.structure)


def import_graph(path: str | os.PathLike[str]) -> ImportedGraph:
    """The function that was stored at `path`, over new variables with the values that were saved there.

    No code of whoever saved it is needed, or run. Raises ConfigurationError where no graph was stored,
    CorruptCheckpoint.
    """
    stored = open_stored(str(path))
    if stored.bundle is None or GRAPH not in stored.bundle:
        raise ConfigurationError(f"{path} holds no graph: save with Saver(..., graph=(function, inputs))")
    variables = {
        name: Variable(np.asarray(array), dtype=array.dtype, name=name)
        for name, array in stored.arrays.items()
    }
    constants = {k: np.asarray(v) for k, v in zarr_arrays.StoredArrays(stored.bundle, CONSTANTS).items()}
    try:
        document = documents.read(stored.bundle, GRAPH)
        graph = graph_json.from_json(document, constants, variables)
        for entry in document["variables"]:
            variables[entry["path"]].trainable = entry["trainable"]
    except ConfigurationError as exc:
        raise CorruptCheckpoint(f"{stored.where}/{GRAPH}: {exc}") from exc
    return ImportedGraph(variables, graph)


def _traced(given: Any, variables: Mapping[str, Variable]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The document of a function's graph, and its large constants, with variables under their saved names."""
    function, *inputs = given if isinstance(given, tuple | list) else (given,)
    check(callable(function), f"Saver: graph={function!r} is no function")
    graph = trace(function, *(map_structure(_spec, each) for each in inputs))
    names = {id(variable): name for name, variable in variables.items()}
    document, constants = graph_json.to_json(graph)
    for entry, variable in zip(document["variables"], graph.variables, strict=True):
        check(
            id(variable) in names,
            f"Saver: the graph uses variable {variable.path!r}, which is not saved: put it into var_list",
        )
        entry["path"] = names[id(variable)]
    return document, constants


def _spec(given: Any) -> Spec:
    if isinstance(given, Spec):
        return given
    spec: Spec = as_operand(given).spec
    return spec
