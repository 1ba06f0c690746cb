"""Why a primitive has no node form, and what to do about it, for those where one may ask."""

from __future__ import annotations

from typing import Final

_HOST_CODE: Final = (
    "it calls Python code, which no file holds; compute it outside the function and pass the "
    "result in (equinox.error_if, which diffrax uses, becomes NaN under EQX_ON_ERROR=nan)"
)
_DEBUGGING: Final = (
    "it prints or calls Python code while the program runs, which no file holds; drop it from "
    "the function, or return the value"
)
_CUSTOM_KERNEL: Final = (
    "its kernel is machine code or a kernel language of one device; use the form in jax.numpy or "
    "jax.lax where the library offers one (often implementation='xla'), or let add_signature "
    "carry it with carry_custom_calls"
)
_MUTABLE: Final = (
    "it reads or writes a mutable array (jax.new_ref) that cannot be turned into a plain value, as "
    "where a function with a derivative rule takes it, or where a loop's condition reads what its "
    "body writes, which JAX itself does not see; write the function with plain arrays"
)
_COLLECTIVE: Final = (
    "a collective of few uses; use psum, all_gather, ppermute, all_to_all or psum_scatter, or jit "
    "with shardings, where the compiler inserts the communication"
)
_EQUINOX: Final = (
    "it is a primitive of Equinox that guards or hides what it calls; call the function itself"
)
_TRANSIENT: Final = (
    "it stands only inside a derivative that is being taken; trace the finished derivative"
)
_SPARSE: Final = (
    "it is a primitive of jax.experimental.sparse; use dense arrays, or gather and segment_sum"
)
_EXPORTED: Final = (
    "it calls a module of jax.export; call the function that was exported, or let add_signature "
    "carry it with carry_custom_calls"
)
_SINK: Final = "it only keeps a value from being optimized away; return the value"

_HINT: Final = (
    "it tells the compiler where or how to compute, which no graph records; drop it from the "
    "function that is saved, and wrap what was loaded in it"
)
_CHECKIFY: Final = "its errors are effects; trace what jax.experimental.checkify.checkify returns"
_TENSORFLOW: Final = "it calls TensorFlow; put the function's graph beside, by import_graph_def"

_GROUPS: Final[dict[str, tuple[str, ...]]] = {
    _HOST_CODE: ("pure_callback", "io_callback", "buffer_callback"),
    _DEBUGGING: ("debug_callback", "debug_print", "inspect_sharding"),
    _CUSTOM_KERNEL: (
        "pallas_call",
        "core_map",
        "mpmd_map",
        "tpu_custom_call",
        "mosaic_gpu_p",
        "triton_kernel_call",
        "ffi_call",
        "custom_partitioning",
        "cudnn_fusion",
        "custom_fusion",
        "dot_product_attention_fwd_wrapper",
        "dot_product_attention_bwd_wrapper",
        "dot_product_attention_fp8_fwd_wrapper",
        "dot_product_attention_fp8_bwd_wrapper",
        "rnn_fwd",
        "rnn_bwd",
    ),
    _MUTABLE: (
        "new_ref",
        "empty_ref",
        "free_ref",
        "get",
        "swap",
        "addupdate",
        "accum_grad_in_ref",
        "broadcast_to",
        "freeze",
        "run_state",
    ),
    _TRANSIENT: ("custom_lin",),
    _SPARSE: (
        "bcoo_dot_general",
        "bcoo_fromdense",
        "bcoo_dot_general_sampled",
        "bcoo_extract",
        "bcoo_sort_indices",
        "bcoo_spdot_general",
        "bcoo_sum_duplicates",
        "bcoo_todense",
        "bcoo_transpose",
        "bcsr_dot_general",
        "bcsr_extract",
        "bcsr_fromdense",
        "bcsr_todense",
        "coo_fromdense",
        "coo_matmat",
        "coo_matvec",
        "coo_todense",
        "csr_fromdense",
        "csr_matmat",
        "csr_matvec",
        "csr_todense",
        "spsolve",
        "todense",
    ),
    _HINT: (
        "compute_on",
        "layout_constraint",
        "shard_alike",
        "xla_metadata_call",
        "xla_metadata_value",
    ),
    _CHECKIFY: ("check",),
    _TENSORFLOW: ("call_tf",),
    _EXPORTED: ("call_exported",),
    _SINK: ("dce_sink",),
    _COLLECTIVE: (
        "unreduced_psum",
        "psend",
        "precv",
        "all_gather_reduced",
        "all_gather_done",
        "all_gather_reduced_start",
        "all_gather_start",
        "all_to_all_done",
        "all_to_all_start",
        "pbroadcast_done",
        "pbroadcast_start",
        "ppermute_done",
        "ppermute_start",
        "preduced",
        "psum_done",
        "psum_invariant_start",
        "psum_start",
        "reduce_scatter_done",
        "reduce_scatter_start",
        "unreduced_psum_start",
        "unreduced_reduce_scatter",
        "unreduced_reduce_scatter_start",
        "unreduced_pmax",
        "unreduced_pmin",
        "vary_unreduced_cast",
    ),
    _EQUINOX: (
        "nondifferentiable",
        "nontraceable",
        "noinline",
    ),
}

NOT_LOWERED: Final[dict[str, str]] = {
    name: reason for reason, names in _GROUPS.items() for name in names
}
"""Primitive name to the reason."""


TAKES_SCALES: Final = frozenset(
    {
        "bitcast_convert_type",
        "broadcast_in_dim",
        "concatenate",
        "convert_element_type",
        "copy",
        "jit",
        "optimization_barrier",
        "pjit",
        "reshape",
        "rev",
        "scaled_dot",
        "scaled_matmul_wrapper",
        "slice",
        "squeeze",
        "stop_gradient",
        "transpose",
    }
)
"""The primitives that take float8_e8m0fnu, which TensorFlow lacks and graphs hold as bits."""

NO_SCALES: Final = (
    "it takes or gives float8_e8m0fnu, which TensorFlow has not; let it work on the bits, by "
    "jax.lax.bitcast_convert_type to and from uint8"
)


MUTABLE: Final = _MUTABLE
"""Why an eqn has no node form that is given a reference."""


def runs_python(primitive: str) -> bool:
    """Returns whether a primitive calls Python code, which nothing can carry into a file."""
    return NOT_LOWERED.get(primitive) in (_HOST_CODE, _DEBUGGING)
