"""MetaGraphs: export, import, and copies from scope to scope.

A file is a MetaGraphDef as TensorFlow 1 reads it. What TensorFlow has no field for stands in
`_jax_*` attrs of the nodes; records of pytrees stand in ``object_graph_def``, as StructuredValues.
"""

from __future__ import annotations

from jaxmeta import errors
from jaxmeta.graphs import building
from jaxmeta.graphs.function_library import stripped_op_list_for_graph as stripped_op_list_for_graph
from jaxmeta.graphs.graph import Variable
from jaxmeta.meta_graphs.meta_graph_export import export_meta_graph as export_meta_graph
from jaxmeta.meta_graphs.meta_graph_export import (
    export_scoped_meta_graph as export_scoped_meta_graph,
)
from jaxmeta.meta_graphs.meta_graph_file import FORMAT_VERSION as FORMAT_VERSION
from jaxmeta.meta_graphs.meta_graph_file import read_meta_graph_file as read_meta_graph_file
from jaxmeta.meta_graphs.meta_graph_import import ImportedMetaGraph as ImportedMetaGraph
from jaxmeta.meta_graphs.meta_graph_import import MetaGraphOrFile as MetaGraphOrFile
from jaxmeta.meta_graphs.meta_graph_import import add_meta_graph as add_meta_graph
from jaxmeta.meta_graphs.meta_graph_import import import_graph as import_graph
from jaxmeta.meta_graphs.meta_graph_import import (
    import_scoped_meta_graph as import_scoped_meta_graph,
)
from jaxmeta.meta_graphs.meta_graph_import import (
    import_scoped_meta_graph_with_return_elements as import_scoped_meta_graph_with_return_elements,
)


def copy_scoped_meta_graph(
    from_scope: str,
    to_scope: str,
    from_graph: building.Graph | None = None,
    to_graph: building.Graph | None = None,
) -> dict[str, Variable]:
    """Copies all that is in one scope of a graph into another scope, or another graph.

    Args:
        from_scope: the scope that is copied.
        to_scope: the scope for the copy.
        from_graph: the graph that holds it; the default graph where None.
        to_graph: the graph for the copy; the default graph where None.

    Returns:
        The copied variables by their names without the scope, ``w:0``.

    Raises:
        GraphError: the scopes and the graphs are the same, or nodes have inputs from outside; a
            ValueError.

    Example:
        >>> import jax.numpy as jnp
        >>> g = building.Graph()
        >>> w = g.variables({"w": jnp.ones(3)}, name="a")
        >>> copy_scoped_meta_graph("a", "b", g, g)
        {'w:0': <jaxmeta.Variable 'b/w:0' shape=(3,) dtype=float32>}
    """
    source = from_graph if from_graph is not None else building.get_default_graph()
    target = to_graph if to_graph is not None else building.get_default_graph()
    if source is target and from_scope == to_scope:
        raise errors.GraphError(
            "'from_scope' and 'to_scope' need to be different when performing copy in the same "
            f"graph. Received: 'from_scope': {from_scope}, 'to_scope': {to_scope}."
        )
    copied, originals = export_scoped_meta_graph(export_scope=from_scope, graph=source)
    variables = import_scoped_meta_graph(copied, graph=target, import_scope=to_scope)
    # Arrays that functions closed over are in no MetaGraphDef.
    for held, holding in (
        (source.constants, target.constants),
        (source.captured, target.captured),
    ):
        for name, variable in variables.items():
            if originals[name].op_name in held:
                holding[variable.op_name] = held[originals[name].op_name]
    return variables
