"""Why a primitive has no node form, and what to do about it, for those where one may ask."""

from __future__ import annotations

from typing import Final

_HOST_CODE: Final = (
    "it calls Python code, which no file holds; compute it outside the function and pass the "
    "result in"
)
_DEBUGGING: Final = (
    "it prints or calls Python code while the program runs, which no file holds; drop it from "
    "the function, or return the value"
)
_CUSTOM_KERNEL: Final = (
    "its kernel is machine code or a kernel language of one device; use the form in jax.numpy or "
    "jax.lax where the library offers one (often implementation='xla')"
)
_MUTABLE: Final = (
    "it reads or writes a mutable array (jax.new_ref); write the function with plain arrays that "
    "it takes and returns"
)
_FACTORIZATION: Final = (
    "TensorFlow has no op for this factorization; compute it outside the function, or use eigh, "
    "svd or qr"
)
_COLLECTIVE: Final = (
    "it talks to other devices by a mapped axis's name; use jit with shardings, where the "
    "compiler inserts the communication, in place of shard_map and pmap"
)
_EQUINOX: Final = (
    "it is a primitive of Equinox or Lineax, known to no other program; use the form in jax.lax "
    "(lax.scan or lax.while_loop, jnp.linalg.solve)"
)

_ORDERING: Final = (
    "it only orders effects, and functions with effects cannot be written; return the values"
)
_TRANSIENT: Final = (
    "it stands only inside a derivative that is being taken; trace the finished derivative"
)
_WINDOW: Final = "no program uses it outside the gradient of pooling, which has a node form"

_GROUPS: Final[dict[str, tuple[str, ...]]] = {
    _HOST_CODE: ("pure_callback", "io_callback"),
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
        "scaled_matmul_wrapper",
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
        "freeze",
        "run_state",
    ),
    _ORDERING: ("after_all", "create_token"),
    _TRANSIENT: ("custom_lin",),
    _WINDOW: ("select_and_scatter",),
    _FACTORIZATION: ("schur", "hessenberg", "tridiagonal"),
    _COLLECTIVE: (
        "shard_map",
        "psum",
        "psum_invariant",
        "unreduced_psum",
        "pmax",
        "pmin",
        "ppermute",
        "pbroadcast",
        "psend",
        "precv",
        "all_gather",
        "all_gather_invariant",
        "all_gather_reduced",
        "all_to_all",
        "ragged_all_to_all",
        "reduce_scatter",
        "axis_index",
    ),
    _EQUINOX: (
        "nonbatchable",
        "nondifferentiable",
        "nondifferentiable_backward",
        "select_if_vmap",
        "unvmap_all",
        "unvmap_any",
        "unvmap_max",
        "maybe_set",
        "linear_solve",
    ),
}

NOT_LOWERED: Final[dict[str, str]] = {
    name: reason for reason, names in _GROUPS.items() for name in names
}
"""Primitive name to the reason; a lowering of that name, where there is one, comes first."""
