"""jaxmeta: whole JAX training programs in files, as TensorFlow MetaGraphs.

>>> import jax.numpy as jnp
>>> import jaxmeta as jm
>>> graph = jm.Graph()
>>> state = {"w": jnp.zeros(3)}
>>> _ = graph.add_signature("step", lambda s, x: {"w": s["w"] + x}, graph.variables(state),
...                         jnp.ones(3), updates=0)
>>> [node.op for node in graph.functions["step"].node_def]
['AddV2']
"""

from jaxmeta.building import Graph as Graph
from jaxmeta.building import get_default_graph as get_default_graph
from jaxmeta.building import reset_default_graph as reset_default_graph
from jaxmeta.checkpoint.state import get_checkpoint_state as get_checkpoint_state
from jaxmeta.checkpoint.state import latest_checkpoint as latest_checkpoint
from jaxmeta.checkpoint.state import update_checkpoint_state as update_checkpoint_state
from jaxmeta.construction import add_to_collection as add_to_collection
from jaxmeta.construction import add_to_collections as add_to_collections
from jaxmeta.construction import call as call
from jaxmeta.construction import constant as constant
from jaxmeta.construction import control_dependencies as control_dependencies
from jaxmeta.construction import create_partitioned_variables as create_partitioned_variables
from jaxmeta.construction import get_collection as get_collection
from jaxmeta.construction import get_collection_ref as get_collection_ref
from jaxmeta.construction import global_variables as global_variables
from jaxmeta.construction import global_variables_initializer as global_variables_initializer
from jaxmeta.construction import gradients as gradients
from jaxmeta.construction import group as group
from jaxmeta.construction import identity as identity
from jaxmeta.construction import initialize_all_variables as initialize_all_variables
from jaxmeta.construction import local_variables as local_variables
from jaxmeta.construction import local_variables_initializer as local_variables_initializer
from jaxmeta.construction import minimize as minimize
from jaxmeta.construction import name_scope as name_scope
from jaxmeta.construction import no_op as no_op
from jaxmeta.construction import placeholder as placeholder
from jaxmeta.construction import trainable_variables as trainable_variables
from jaxmeta.construction import variables_initializer as variables_initializer
from jaxmeta.errors import AttrError as AttrError
from jaxmeta.errors import CheckpointError as CheckpointError
from jaxmeta.errors import CheckpointPathError as CheckpointPathError
from jaxmeta.errors import FeedError as FeedError
from jaxmeta.errors import FinalizedGraphError as FinalizedGraphError
from jaxmeta.errors import FormatError as FormatError
from jaxmeta.errors import GraphError as GraphError
from jaxmeta.errors import GraphTypeError as GraphTypeError
from jaxmeta.errors import JaxmetaError as JaxmetaError
from jaxmeta.errors import UnknownNameError as UnknownNameError
from jaxmeta.errors import UnsupportedOpError as UnsupportedOpError
from jaxmeta.errors import UnsupportedPrimitiveError as UnsupportedPrimitiveError
from jaxmeta.handles import Operation as Operation
from jaxmeta.handles import SaveSliceInfo as SaveSliceInfo
from jaxmeta.handles import Tensor as Tensor
from jaxmeta.handles import Variable as Variable
from jaxmeta.meta_graph import export_meta_graph as export_meta_graph
from jaxmeta.meta_graph import read_meta_graph_file as read_meta_graph_file
from jaxmeta.program import Program as Program
from jaxmeta.saver import Saver as Saver
from jaxmeta.saver import import_meta_graph as import_meta_graph
from jaxmeta.saver import load as load
from jaxmeta.session import Session as Session

__version__ = "0.1.0"
