"""The op table: importing this package fills it, one family of ops a module."""

from jaxmeta.pausing import paused_gc

with paused_gc():  # the functions of the table all live on
    from jaxmeta.ops import arithmetic as arithmetic
    from jaxmeta.ops import batch_normalization as batch_normalization
    from jaxmeta.ops import bits as bits
    from jaxmeta.ops import calls as calls
    from jaxmeta.ops import casts as casts
    from jaxmeta.ops import collectives as collectives
    from jaxmeta.ops import comparison as comparison
    from jaxmeta.ops import control_flow as control_flow
    from jaxmeta.ops import conv as conv
    from jaxmeta.ops import conv_gradients as conv_gradients
    from jaxmeta.ops import creation as creation
    from jaxmeta.ops import custom_calls as custom_calls
    from jaxmeta.ops import custom_derivatives as custom_derivatives
    from jaxmeta.ops import dataflow as dataflow
    from jaxmeta.ops import dot as dot
    from jaxmeta.ops import eigen as eigen
    from jaxmeta.ops import embedding as embedding
    from jaxmeta.ops import factorizations as factorizations
    from jaxmeta.ops import fft as fft
    from jaxmeta.ops import gather as gather
    from jaxmeta.ops import identities as identities
    from jaxmeta.ops import incomplete_functions as incomplete_functions
    from jaxmeta.ops import joining as joining
    from jaxmeta.ops import linear_systems as linear_systems
    from jaxmeta.ops import nn as nn
    from jaxmeta.ops import queues as queues
    from jaxmeta.ops import ragged_dot as ragged_dot
    from jaxmeta.ops import random as random
    from jaxmeta.ops import random_keys as random_keys
    from jaxmeta.ops import reduce as reduce
    from jaxmeta.ops import reflectors as reflectors
    from jaxmeta.ops import reshaping as reshaping
    from jaxmeta.ops import scan as scan
    from jaxmeta.ops import scatter as scatter
    from jaxmeta.ops import shapes as shapes
    from jaxmeta.ops import shard_map as shard_map
    from jaxmeta.ops import sharding as sharding
    from jaxmeta.ops import slicing as slicing
    from jaxmeta.ops import sort as sort
    from jaxmeta.ops import special_functions as special_functions
    from jaxmeta.ops import state as state
    from jaxmeta.ops import strings as strings
    from jaxmeta.ops import summaries as summaries
    from jaxmeta.ops import tensorflow_arithmetic as tensorflow_arithmetic
    from jaxmeta.ops import tensorflow_arrays as tensorflow_arrays
    from jaxmeta.ops import tensorflow_random as tensorflow_random
    from jaxmeta.ops import training as training
    from jaxmeta.ops import window as window
    from jaxmeta.ops import window_gradients as window_gradients
