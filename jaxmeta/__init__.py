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
from jaxmeta.building import add_to_collection as add_to_collection
from jaxmeta.building import get_collection as get_collection
from jaxmeta.building import get_default_graph as get_default_graph
from jaxmeta.building import name_scope as name_scope
from jaxmeta.building import reset_default_graph as reset_default_graph
from jaxmeta.checkpoint.reader import CheckpointReader as CheckpointReader
from jaxmeta.checkpoint.reader import NewCheckpointReader as NewCheckpointReader
from jaxmeta.checkpoint.reader import list_variables as list_variables
from jaxmeta.checkpoint.reader import load_checkpoint as load_checkpoint
from jaxmeta.checkpoint.reader import load_variable as load_variable
from jaxmeta.checkpoint.state import checkpoint_exists as checkpoint_exists
from jaxmeta.checkpoint.state import (
    generate_checkpoint_state_proto as generate_checkpoint_state_proto,
)
from jaxmeta.checkpoint.state import get_checkpoint_mtimes as get_checkpoint_mtimes
from jaxmeta.checkpoint.state import get_checkpoint_state as get_checkpoint_state
from jaxmeta.checkpoint.state import latest_checkpoint as latest_checkpoint
from jaxmeta.checkpoint.state import meta_graph_filename as meta_graph_filename
from jaxmeta.checkpoint.state import remove_checkpoint as remove_checkpoint
from jaxmeta.checkpoint.state import update_checkpoint_state as update_checkpoint_state
from jaxmeta.collection_registry import GraphKeys as GraphKeys
from jaxmeta.collection_registry import register_proto_function as register_proto_function
from jaxmeta.control_flow_contexts import CondContext as CondContext
from jaxmeta.control_flow_contexts import WhileContext as WhileContext
from jaxmeta.errors import ArgumentTypeError as ArgumentTypeError
from jaxmeta.errors import AttrError as AttrError
from jaxmeta.errors import CheckpointError as CheckpointError
from jaxmeta.errors import CheckpointPathError as CheckpointPathError
from jaxmeta.errors import FeedError as FeedError
from jaxmeta.errors import FormatError as FormatError
from jaxmeta.errors import GraphError as GraphError
from jaxmeta.errors import JaxmetaError as JaxmetaError
from jaxmeta.errors import MissingNameError as MissingNameError
from jaxmeta.errors import MissingNodeError as MissingNodeError
from jaxmeta.errors import NameTakenError as NameTakenError
from jaxmeta.errors import ShardingError as ShardingError
from jaxmeta.errors import UnreadableFileError as UnreadableFileError
from jaxmeta.errors import UnsupportedOpError as UnsupportedOpError
from jaxmeta.errors import UnsupportedPrimitiveError as UnsupportedPrimitiveError
from jaxmeta.graph import Operation as Operation
from jaxmeta.graph import Tensor as Tensor
from jaxmeta.graph import Variable as Variable
from jaxmeta.graph_def_import import import_graph_def as import_graph_def
from jaxmeta.graph_transforms import extract_sub_graph as extract_sub_graph
from jaxmeta.graph_transforms import remove_training_nodes as remove_training_nodes
from jaxmeta.meta_graph import copy_scoped_meta_graph as copy_scoped_meta_graph
from jaxmeta.meta_graph import export_meta_graph as export_meta_graph
from jaxmeta.meta_graph import export_scoped_meta_graph as export_scoped_meta_graph
from jaxmeta.meta_graph import import_scoped_meta_graph as import_scoped_meta_graph
from jaxmeta.meta_graph import read_meta_graph_file as read_meta_graph_file
from jaxmeta.meta_graph_file import write_graph as write_graph
from jaxmeta.program import Program as Program
from jaxmeta.saver import Saver as Saver
from jaxmeta.saver import import_meta_graph as import_meta_graph
from jaxmeta.saver import load as load
from jaxmeta.session import Session as Session

__version__ = "0.1.0"
