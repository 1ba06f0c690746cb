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

from jaxmeta import summary as summary
from jaxmeta._proto.meta_graph_pb2 import SaverDef as SaverDef
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
from jaxmeta.errors import ArgumentTypeError as ArgumentTypeError
from jaxmeta.errors import AttrError as AttrError
from jaxmeta.errors import CancelledError as CancelledError
from jaxmeta.errors import CheckpointError as CheckpointError
from jaxmeta.errors import CheckpointPathError as CheckpointPathError
from jaxmeta.errors import CheckpointTypeError as CheckpointTypeError
from jaxmeta.errors import CustomCallError as CustomCallError
from jaxmeta.errors import DataLossError as DataLossError
from jaxmeta.errors import DeadlineExceededError as DeadlineExceededError
from jaxmeta.errors import DerivativeError as DerivativeError
from jaxmeta.errors import DtypeError as DtypeError
from jaxmeta.errors import FailedPreconditionError as FailedPreconditionError
from jaxmeta.errors import FeedError as FeedError
from jaxmeta.errors import FeedTypeError as FeedTypeError
from jaxmeta.errors import FileAccessError as FileAccessError
from jaxmeta.errors import FinalizedGraphError as FinalizedGraphError
from jaxmeta.errors import FormatError as FormatError
from jaxmeta.errors import GraphError as GraphError
from jaxmeta.errors import GraphTypeError as GraphTypeError
from jaxmeta.errors import InvalidArgumentError as InvalidArgumentError
from jaxmeta.errors import JaxmetaError as JaxmetaError
from jaxmeta.errors import MissingNameError as MissingNameError
from jaxmeta.errors import MissingNodeError as MissingNodeError
from jaxmeta.errors import MissingPackageError as MissingPackageError
from jaxmeta.errors import NameTakenError as NameTakenError
from jaxmeta.errors import NotBuiltError as NotBuiltError
from jaxmeta.errors import NotFoundError as NotFoundError
from jaxmeta.errors import OperationError as OperationError
from jaxmeta.errors import OutOfRangeError as OutOfRangeError
from jaxmeta.errors import SessionError as SessionError
from jaxmeta.errors import ShardingError as ShardingError
from jaxmeta.errors import UnreadableFileError as UnreadableFileError
from jaxmeta.errors import UnsupportedOpError as UnsupportedOpError
from jaxmeta.errors import UnsupportedPrimitiveError as UnsupportedPrimitiveError
from jaxmeta.event_files import FileWriter as FileWriter
from jaxmeta.execution.coordinator import Coordinator as Coordinator
from jaxmeta.execution.queue_runner import QueueRunner as QueueRunner
from jaxmeta.execution.queue_runner import add_queue_runner as add_queue_runner
from jaxmeta.execution.queue_runner import start_queue_runners as start_queue_runners
from jaxmeta.execution.queues import FIFOQueue as FIFOQueue
from jaxmeta.execution.queues import PaddingFIFOQueue as PaddingFIFOQueue
from jaxmeta.execution.queues import RandomShuffleQueue as RandomShuffleQueue
from jaxmeta.execution.session import InteractiveSession as InteractiveSession
from jaxmeta.execution.session import Session as Session
from jaxmeta.execution.session import get_default_session as get_default_session
from jaxmeta.graphs.building import Graph as Graph
from jaxmeta.graphs.building import get_default_graph as get_default_graph
from jaxmeta.graphs.building import reset_default_graph as reset_default_graph
from jaxmeta.graphs.construction import add_to_collection as add_to_collection
from jaxmeta.graphs.construction import add_to_collections as add_to_collections
from jaxmeta.graphs.construction import call as call
from jaxmeta.graphs.construction import constant as constant
from jaxmeta.graphs.construction import control_dependencies as control_dependencies
from jaxmeta.graphs.construction import create_partitioned_variables as create_partitioned_variables
from jaxmeta.graphs.construction import get_collection as get_collection
from jaxmeta.graphs.construction import get_collection_ref as get_collection_ref
from jaxmeta.graphs.construction import global_variables as global_variables
from jaxmeta.graphs.construction import global_variables_initializer as global_variables_initializer
from jaxmeta.graphs.construction import gradients as gradients
from jaxmeta.graphs.construction import group as group
from jaxmeta.graphs.construction import identity as identity
from jaxmeta.graphs.construction import initialize_all_variables as initialize_all_variables
from jaxmeta.graphs.construction import local_variables as local_variables
from jaxmeta.graphs.construction import local_variables_initializer as local_variables_initializer
from jaxmeta.graphs.construction import minimize as minimize
from jaxmeta.graphs.construction import name_scope as name_scope
from jaxmeta.graphs.construction import no_op as no_op
from jaxmeta.graphs.construction import placeholder as placeholder
from jaxmeta.graphs.construction import (
    placeholder_with_default as placeholder_with_default,
)
from jaxmeta.graphs.construction import shape as shape
from jaxmeta.graphs.construction import trainable_variables as trainable_variables
from jaxmeta.graphs.construction import variables_initializer as variables_initializer
from jaxmeta.graphs.handles import Operation as Operation
from jaxmeta.graphs.handles import Tensor as Tensor
from jaxmeta.graphs.variable_handles import SaveSliceInfo as SaveSliceInfo
from jaxmeta.graphs.variable_handles import Variable as Variable
from jaxmeta.meta_graphs.collection_registry import GraphKeys as GraphKeys
from jaxmeta.meta_graphs.collection_registry import (
    register_proto_function as register_proto_function,
)
from jaxmeta.meta_graphs.control_flow_contexts import CondContext as CondContext
from jaxmeta.meta_graphs.control_flow_contexts import WhileContext as WhileContext
from jaxmeta.meta_graphs.differences import Difference as Difference
from jaxmeta.meta_graphs.differences import diff as diff
from jaxmeta.meta_graphs.freezing import (
    convert_variables_to_constants as convert_variables_to_constants,
)
from jaxmeta.meta_graphs.graph_def_import import import_graph_def as import_graph_def
from jaxmeta.meta_graphs.graph_transforms import extract_sub_graph as extract_sub_graph
from jaxmeta.meta_graphs.graph_transforms import remove_training_nodes as remove_training_nodes
from jaxmeta.meta_graphs.meta_graph import copy_scoped_meta_graph as copy_scoped_meta_graph
from jaxmeta.meta_graphs.meta_graph import export_meta_graph as export_meta_graph
from jaxmeta.meta_graphs.meta_graph import export_scoped_meta_graph as export_scoped_meta_graph
from jaxmeta.meta_graphs.meta_graph import import_scoped_meta_graph as import_scoped_meta_graph
from jaxmeta.meta_graphs.meta_graph import read_meta_graph_file as read_meta_graph_file
from jaxmeta.meta_graphs.meta_graph_file import write_graph as write_graph
from jaxmeta.program import Program as Program
from jaxmeta.saving.loading import load as load
from jaxmeta.saving.saver import Saver as Saver
from jaxmeta.saving.saver import import_meta_graph as import_meta_graph
from jaxmeta.tracing.custom_calls import allow_custom_calls as allow_custom_calls

__version__ = "0.1.0"
