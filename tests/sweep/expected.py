"""Which functions the sweep does not call, and which come back refused, with the reasons."""

from __future__ import annotations

_NO_ARRAYS = "takes or returns no arrays"
_FILES = "reads or writes files or memory"
_MESH = "needs a mesh of devices"
_UNTRACEABLE = "JAX cannot trace it: the shape of its result depends on values"
_ACCELERATOR = "JAX lowers it for NVIDIA GPUs only"
_EFFECT = "has no result, only an effect"

_NOT_CALLED_BY_REASON = {
    _NO_ARRAYS: (
        "jax.lax.broadcast_shapes",
        "jax.lax.conv_dimension_numbers",
        "jax.lax.conv_general_permutations",
        "jax.lax.conv_general_shape_tuple",
        "jax.lax.conv_shape_tuple",
        "jax.lax.conv_transpose_shape_tuple",
        "jax.lax.create_token",
        "jax.lax.dtype",
        "jax.lax.padtype_to_pads",
        "jax.lax.reduce_window_shape_tuple",
        "jax.nn.get_scaled_dot_general_config",
        "jax.numpy.array_repr",
        "jax.numpy.array_str",
        "jax.numpy.broadcast_shapes",
        "jax.numpy.einsum_path",
        "jax.numpy.get_printoptions",
        "jax.numpy.printoptions",
        "jax.numpy.promote_types",
        "jax.numpy.result_type",
        "jax.numpy.set_printoptions",
        "jax.random.key_dtype",
        "jax.random.key_impl",
        "optax.init_empty_state",
    ),
    _FILES: (
        "jax.numpy.from_dlpack",
        "jax.numpy.frombuffer",
        "jax.numpy.fromfile",
        "jax.numpy.fromiter",
        "jax.numpy.fromstring",
        "jax.numpy.load",
        "jax.numpy.save",
        "jax.numpy.savez",
    ),
    _MESH: (
        "jax.lax.pbroadcast",
        "jax.lax.pcast",
        "jax.lax.pmax",
        "jax.lax.pmin",
        "jax.lax.precv",
        "jax.lax.psend",
        "jax.lax.psum_scatter_start",
        "jax.lax.ragged_all_to_all",
        "jax.lax.with_sharding_constraint",
    ),
    _UNTRACEABLE: ("jax.numpy.trim_zeros",),
    _ACCELERATOR: ("jax.nn.scaled_dot_general", "jax.nn.scaled_matmul"),
    _EFFECT: ("jax.lax.dce_sink",),
}
NOT_CALLED = {name: reason for reason, names in _NOT_CALLED_BY_REASON.items() for name in names}

REFUSED: dict[str, frozenset[str]] = {}
"""Function to the primitives without a node form that its calls hold."""

# Not in each supported JAX.
NOT_EVERYWHERE = frozenset({"jax.lax.precv", "jax.lax.psend", "jax.lax.psum_scatter_start"})
