"""Arguments for functions whose parameters' names do not tell what they take."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

M = np.random.default_rng(3).uniform(0.1, 0.9, (4, 4)).astype(np.float32)
SPD = (M @ M.T + 4 * np.eye(4)).astype(np.float32)
V = M[0]
C = (M + 1j * M.T).astype(np.complex64)
I = np.asarray([3, 1, 2, 1], np.int32)
B = I > 1
KEY = jax.random.key(5)
IMAGE = np.random.default_rng(4).normal(size=(2, 3, 8, 8)).astype(np.float32)
KERNEL = np.random.default_rng(5).normal(size=(4, 3, 3, 3)).astype(np.float32)
QKV = np.random.default_rng(6).normal(size=(2, 5, 2, 4)).astype(np.float32)
LOGITS = np.random.default_rng(7).normal(size=(2, 6, 4)).astype(np.float32)
ROW_GATHER = lax.GatherDimensionNumbers((1,), (0,), (0,))
ROW_SCATTER = lax.ScatterDimensionNumbers((1,), (0,), (0,))
ROWS = np.asarray([[0], [2]], np.int32)
RAGGED = np.asarray([1, 3], np.int32)


def _scatter(fn: Any) -> list[tuple[Any, ...]]:
    return [
        (lambda x, i, u, mode=mode: fn(x, i, u, ROW_SCATTER, mode=mode), M, ROWS, M[:2])
        for mode in ("clip", "drop", "promise_in_bounds")
    ]


def _reduce(fn: Any, *arrays: Any) -> list[tuple[Any, ...]]:
    return [(lambda x: fn(x, (0,)), array) for array in arrays]


def _with_size(fn: Any, *arrays: Any) -> list[tuple[Any, ...]]:
    return [(lambda *x: fn(*x, size=5, fill_value=0), *arrays)]


def _initializer(make: Any, *args: Any, shape: tuple[int, ...] = (4, 3)) -> list[tuple[Any, ...]]:
    return [(lambda key: make(*args)(key, shape), KEY)]


def _inits() -> dict[str, list[tuple[Any, ...]]]:
    init = jax.nn.initializers
    plain = "glorot_normal glorot_uniform he_normal he_uniform lecun_normal lecun_uniform normal "
    plain += "orthogonal truncated_normal uniform"
    made = {name: _initializer(getattr(init, name)) for name in plain.split()}
    made["constant"] = _initializer(init.constant, 2.0)
    made["delta_orthogonal"] = _initializer(init.delta_orthogonal, shape=(3, 3, 4, 4))
    made["variance_scaling"] = _initializer(init.variance_scaling, 2.0, "fan_avg", "uniform")
    return {f"jax.nn.initializers.{name}": calls for name, calls in made.items()}


def _custom_root(x: Any) -> Any:
    return lax.custom_root(
        lambda y: y**2 - x,
        x,
        lambda f, y: lax.fori_loop(0, 9, lambda _, z: z - f(z) / (2 * z), y),
        lambda g, y: y / g(jnp.ones_like(y)),
    )


_NUMPY: dict[str, list[tuple[Any, ...]]] = {
    "apply_along_axis": [(lambda x: jnp.apply_along_axis(jnp.sort, 0, x), M)],
    "apply_over_axes": [(lambda x: jnp.apply_over_axes(jnp.sum, x, (0,)), M)],
    "argpartition": [(lambda x: jnp.argpartition(x, 2), M)],
    "argwhere": [(lambda x: jnp.argwhere(x, size=3), B)],
    "bincount": [
        (lambda x: jnp.bincount(x, length=5), I),
        (lambda x, w: jnp.bincount(x, w, length=5), I, V),
    ],
    "choose": [(lambda i, x: jnp.choose(i, list(x), mode="clip"), I, M)],
    "clip": [(lambda x: jnp.clip(x, 0.2, 0.5), M), (lambda x: jnp.clip(x, 1, 2), I)],
    "compress": [(lambda c, x: jnp.compress(c, x, size=3), B, V)],
    "cross": [(jnp.cross, M[:, :3], M[:, 1:])],
    "delete": [(lambda x: jnp.delete(x, np.array([1])), V)],
    "dsplit": [(lambda x: jnp.dsplit(x, 2), IMAGE[0])],
    "einsum": [
        (lambda x, y: jnp.einsum("ij,jk->ik", x, y), M, M),
        (lambda x: jnp.einsum("ii", x), M),
        (lambda x, y: jnp.einsum("bij,bjk->bki", x, y), IMAGE[0], IMAGE[1]),
    ],
    "extract": [(lambda c, x: jnp.extract(c, x, size=3), B, V)],
    "fill_diagonal": [(lambda x: jnp.fill_diagonal(x, 2.0, inplace=False), M)],
    "flatnonzero": _with_size(jnp.flatnonzero, B),
    "fliplr": [(jnp.fliplr, M)],
    "flipud": [(jnp.flipud, M)],
    "fromfunction": [(lambda x: jnp.fromfunction(lambda i, j: i * x + j, (3, 2)), V[0])],
    "frompyfunc": [
        (lambda x, y: jnp.frompyfunc(lambda a, b: a * b + 1, 2, 1, identity=0)(x, y), V, V)
    ],
    "intersect1d": [(lambda x, y: jnp.intersect1d(x, y, size=3), I, I)],
    "mask_indices": [(lambda x: (*jnp.mask_indices(4, jnp.triu, size=10), x), V)],
    "negative": [(jnp.negative, M), (jnp.negative, I), (jnp.negative, C)],
    "nonzero": _with_size(jnp.nonzero, B),
    "partition": [(lambda x: jnp.partition(x, 2), M)],
    "place": [(lambda x, m, v: jnp.place(x, m, v, inplace=False), V, B, V)],
    "polyder": [(jnp.polyder, V)],
    "polyfit": [(lambda x, y: jnp.polyfit(x, y, 2), V, M[1])],
    "polyint": [(jnp.polyint, V)],
    "polyval": [(jnp.polyval, V, M)],
    "put": [(lambda x, i, v: jnp.put(x, i, v, inplace=False), M, I, V)],
    "put_along_axis": [
        (lambda x, i, v: jnp.put_along_axis(x, i, v, 0, inplace=False), M, I[None], V[None])
    ],
    "ravel_multi_index": [(lambda i, j: jnp.ravel_multi_index((i, j), (4, 4), mode="clip"), I, I)],
    "rot90": [(jnp.rot90, M)],
    "setdiff1d": [(lambda x, y: jnp.setdiff1d(x, y, size=3), I, I[:2])],
    "setxor1d": [(lambda x, y: jnp.setxor1d(x, y, size=3), I, I[:2])],
    "tril": [(jnp.tril, M), (jnp.tril, M > 0.5)],
    "triu": [(jnp.triu, M), (jnp.triu, M > 0.5)],
    "union1d": [(lambda x, y: jnp.union1d(x, y, size=5), I, I)],
    "unique": _with_size(jnp.unique, I),
    "unique_all": _with_size(jnp.unique_all, I),
    "unique_counts": _with_size(jnp.unique_counts, I),
    "unique_inverse": _with_size(jnp.unique_inverse, I),
    "unique_values": _with_size(jnp.unique_values, I),
    "unwrap": [(jnp.unwrap, 9 * V)],
    "vectorize": [(jnp.vectorize(lambda x, y: x @ y, signature="(n),(n)->()"), M, M)],
    "where": [(jnp.where, B, V, V), (jnp.where, B, I, I), (jnp.where, B, M, 2.0)],
    "linalg.cross": [(jnp.linalg.cross, M[:, :3], M[:, 1:])],
}

_LAX: dict[str, list[tuple[Any, ...]]] = (
    {
        "after_all": [(lambda x: (lax.after_all(lax.create_token()), x)[1], V)],
        "argmax": [
            (lambda x: lax.argmax(x, 0, np.int32), M),
            (lambda x: lax.argmax(x, 0, np.int32), I),
        ],
        "argmin": [
            (lambda x: lax.argmin(x, 0, np.int32), M),
            (lambda x: lax.argmin(x, 0, np.int32), I),
        ],
        "associative_scan": [
            (lambda x: lax.associative_scan(jnp.multiply, x), M),
            (
                lambda x, y: lax.associative_scan(
                    lambda a, b: (a[0] * b[0], a[1] * b[0] + b[1]), (x, y), reverse=True
                ),
                M,
                M,
            ),
        ],
        "broadcast": [(lambda x: lax.broadcast(x, (2,)), V)],
        "broadcast_in_dim": [(lambda x: lax.broadcast_in_dim(x, (4, 3), (0,)), V)],
        "broadcast_to_rank": [(lambda x: lax.broadcast_to_rank(x, 3), V)],
        "collapse": [(lambda x: lax.collapse(x, 1, 3), IMAGE)],
        "rng_bit_generator": [
            (lambda key: lax.rng_bit_generator(key, (3,)), np.arange(4, dtype=np.uint32))
        ],
        "composite": [(lax.composite(lambda x: x * 2, "my.scaled"), V)],
        "cond": [(lambda p, x: lax.cond(p, jnp.sin, jnp.cos, x), B[0], V)],
        "conv": [(lambda x, w: lax.conv(x, w, (1, 1), "SAME"), IMAGE, KERNEL)],
        "conv_general_dilated": [
            (lambda x, w: lax.conv_general_dilated(x, w, (2, 1), [(1, 2), (0, 1)]), IMAGE, KERNEL),
            (
                lambda x, w: lax.conv_general_dilated(
                    x, w, (1, 1), [(0, 1), (2, 0)], (2, 1), (1, 2)
                ),
                IMAGE,
                KERNEL,
            ),
            (
                lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", feature_group_count=3),
                IMAGE,
                KERNEL[:3, :1],
            ),
            (
                lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", batch_group_count=2),
                IMAGE,
                KERNEL,
            ),
        ],
        "conv_general_dilated_local": [
            (
                lambda x, w: lax.conv_general_dilated_local(x, w, (1, 1), "VALID", (3, 3)),
                IMAGE,
                np.ones((4, 27, 6, 6), np.float32),
            )
        ],
        "conv_general_dilated_patches": [
            (lambda x: lax.conv_general_dilated_patches(x, (3, 3), (1, 1), "SAME"), IMAGE)
        ],
        "conv_transpose": [
            (
                lambda x, w: lax.conv_transpose(
                    x, w, (2, 2), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW")
                ),
                IMAGE,
                KERNEL,
            )
        ],
        "conv_with_general_padding": [
            (
                lambda x, w: lax.conv_with_general_padding(
                    x, w, (1, 1), [(1, 1), (1, 1)], (1, 1), (1, 1)
                ),
                IMAGE,
                KERNEL,
            )
        ],
        "custom_linear_solve": [
            (
                lambda a, b: lax.custom_linear_solve(
                    lambda x: a @ x, b, lambda _, y: jnp.linalg.solve(a, y), symmetric=True
                ),
                SPD,
                V,
            )
        ],
        "custom_root": [(_custom_root, V)],
        "dot_general": [
            (lambda x, y: lax.dot_general(x, y, (((1,), (0,)), ((), ()))), M, M),
            (
                lambda x, y: lax.dot_general(
                    x, y, (((2,), (1,)), ((0,), (0,))), precision="highest"
                ),
                IMAGE[0],
                IMAGE[1],
            ),
            (
                lambda x, y: lax.dot_general(
                    x, y, (((1,), (0,)), ((), ())), preferred_element_type=np.float32
                ),
                M.astype(jnp.bfloat16),
                M.astype(jnp.bfloat16),
            ),
        ],
        "dynamic_index_in_dim": [(lambda x, i: lax.dynamic_index_in_dim(x, i), M, I[0])],
        "dynamic_slice": [(lambda x, i: lax.dynamic_slice(x, (i, 0), (2, 2)), M, I[0])],
        "dynamic_update_index_in_dim": [
            (lambda x, y, i: lax.dynamic_update_index_in_dim(x, y, i, 0), M, V, I[0])
        ],
        "dynamic_update_slice": [
            (lambda x, y, i: lax.dynamic_update_slice(x, y, (i, 0)), M, M[:2], I[0])
        ],
        "fft": [(lambda x: lax.fft(x, "FFT", (4,)), C), (lambda x: lax.fft(x, "RFFT", (4, 4)), M)],
        "fori_loop": [
            (lambda n, x: lax.fori_loop(0, n, lambda i, y: y * i, x), I[0], V),
            (lambda x: lax.fori_loop(0, 3, lambda i, y: y * i, x), V),
        ],
        "gather": [
            (
                lambda x, i, mode=mode: lax.gather(
                    x, i, ROW_GATHER, (1, 4), mode=mode, fill_value=3.0 if mode == "fill" else None
                ),
                M,
                ROWS,
            )
            for mode in ("clip", "fill", "promise_in_bounds")
        ],
        "index_in_dim": [(lambda x: lax.index_in_dim(x, 1), M)],
        "index_take": [(lambda x, i: lax.index_take(x, (i,), (0,)), M, I)],
        "integer_pow": [
            (lambda x: lax.integer_pow(x, 3), M),
            (lambda x: lax.integer_pow(x, -2), M),
        ],
        "map": [
            (lambda x: lax.map(jnp.sin, x), M),
            (lambda x: lax.map(jnp.sum, x, batch_size=3), M),
        ],
        "pad": [
            (lambda x: lax.pad(x, np.float32(1), ((1, 0, 0), (0, 2, 1))), M),
            (lambda x: lax.pad(x, np.float32(1), ((-1, 0, 0), (0, -2, 1))), M),
        ],
        "platform_dependent": [
            (lambda x: lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos), V)
        ],
        "polygamma": [(lambda x: lax.polygamma(jnp.full_like(x, 2), x), V)],
        "ragged_dot": [(lax.ragged_dot, M, IMAGE[0, :2, :4], RAGGED)],
        "ragged_dot_general": [
            (
                lambda x, y, n: lax.ragged_dot_general(
                    x, y, n, lax.RaggedDotDimensionNumbers((((1,), (1,)), ((), ())), [0], [0])
                ),
                M,
                IMAGE[0, :2, :4],
                RAGGED,
            )
        ],
        "reduce": [
            (lambda x: lax.reduce(x, np.float32(0), lax.add, (0,)), M),
            (
                lambda x, i: lax.reduce(
                    (x, i),
                    (np.float32(0), np.int32(0)),
                    lambda a, b: (lax.max(a[0], b[0]), lax.max(a[1], b[1])),
                    (0,),
                ),
                V,
                I,
            ),
        ],
        "reduce_window": [
            (
                lambda x: lax.reduce_window(
                    x, -np.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID"
                ),
                IMAGE,
            ),
            (
                lambda x: lax.reduce_window(
                    x, 0.0, lambda a, b: a + b * 0.5, (2, 2), (1, 1), "SAME"
                ),
                M,
            ),
            (
                lambda x: lax.reduce_window(
                    x, 1.0, lax.mul, (2, 2), (1, 1), "SAME", (2, 1), (1, 2)
                ),
                M,
            ),
        ],
        "scan": [
            (lambda x: lax.scan(lambda c, y: (c + y, c * y), x[0], x, reverse=True, unroll=2), M),
            (lambda x: lax.scan(lambda c, _: (c * 2, None), x, None, length=3), V),
        ],
        "scatter_apply": [
            (
                lambda x, i: lax.scatter_apply(x, i, jnp.sin, ROW_SCATTER, update_shape=(2, 4)),
                M,
                ROWS,
            )
        ],
        "select_n": [(lax.select_n, B, V, V), (lax.select_n, I % 3, V, V, V)],
        "slice": [(lambda x: lax.slice(x, (0, 1), (4, 3), (2, 1)), M)],
        "split": [(lambda x: lax.split(x, (1, 3)), V)],
        "squeeze": [(lambda x: lax.squeeze(x, (0,)), V[None])],
        "switch": [(lambda i, x: lax.switch(i, [jnp.sin, jnp.cos, jnp.tan], x), I[1], V)],
        "tile": [(lambda x: lax.tile(x, (2, 1)), M)],
        "transpose": [(lambda x: lax.transpose(x, (1, 0)), M)],
        "while_loop": [(lambda x: lax.while_loop(lambda y: y[0] < 9, lambda y: y * 2, x), V)],
        "linalg.lu_pivots_to_permutation": [
            (lambda x: lax.linalg.lu_pivots_to_permutation(x, 4), I)
        ],
        "linalg.tridiagonal_solve": [(lax.linalg.tridiagonal_solve, V, V + 3, V, M)],
        "bitcast_convert_type": [(lambda x: lax.bitcast_convert_type(x, np.int32), M)],
    }
    | {
        name: _reduce(getattr(lax, name), M, I)
        for name in ("reduce_max", "reduce_min", "reduce_prod", "reduce_sum")
    }
    | {
        name: _reduce(getattr(lax, name), B, I)
        for name in ("reduce_and", "reduce_or", "reduce_xor")
    }
    | {
        name: _scatter(getattr(lax, name))
        for name in (
            "scatter",
            "scatter_add",
            "scatter_max",
            "scatter_min",
            "scatter_mul",
            "scatter_sub",
        )
    }
)

# Over an axis that `jax.vmap` maps.
_LAX |= {
    name: [(jax.vmap(fn, axis_name="i"), M)]
    for name, fn in {
        "all_gather": lambda x: lax.all_gather(x, "i"),
        "all_to_all": lambda x: lax.all_to_all(x, "i", 0, 0),
        "axis_index": lambda x: x + lax.axis_index("i"),
        "axis_size": lambda x: x + lax.axis_size("i"),
        "pmean": lambda x: lax.pmean(x, "i"),
        "ppermute": lambda x: lax.ppermute(x, "i", [(0, 1), (1, 2), (2, 3), (3, 0)]),
        "pshuffle": lambda x: lax.pshuffle(x, "i", [1, 0, 3, 2]),
        "psum": lambda x: lax.psum(x, "i"),
        "psum_scatter": lambda x: lax.psum_scatter(x, "i"),
        "pswapaxes": lambda x: lax.pswapaxes(x, "i", 0),
    }.items()
}

_SCIPY: dict[str, list[tuple[Any, ...]]] = {
    "linalg.cho_solve": [(lambda a, b: jax.scipy.linalg.cho_solve((a, True), b), M, V)],
    "linalg.eigh_tridiagonal": [
        (lambda d, e: jax.scipy.linalg.eigh_tridiagonal(d, e, eigvals_only=True), V, V[1:])
    ],
    "linalg.funm": [(lambda x: jax.scipy.linalg.funm(x, jnp.sin, disp=False), M)],
    "linalg.hadamard": [(lambda x: x @ jax.scipy.linalg.hadamard(4), M)],
    "linalg.leslie": [(jax.scipy.linalg.leslie, V, V[1:])],
    "linalg.lu_solve": [(lambda a, p, b: jax.scipy.linalg.lu_solve((a, p), b), M, I, V)],
    "ndimage.map_coordinates": [
        (lambda x, c: jax.scipy.ndimage.map_coordinates(x, list(c), order=1), M, 3 * M[:2])
    ],
    "optimize.minimize": [
        (
            lambda x: (
                jax.scipy.optimize.minimize(lambda y: jnp.sum((y - 1) ** 2), x, method="BFGS").x
            ),
            V,
        )
    ],
    "special.bessel_jn": [(lambda x: jax.scipy.special.bessel_jn(x, v=2, n_iter=20), V)],
    "special.ndtri": [(jax.scipy.special.ndtri, V)],
    "special.sph_harm_y": [
        (lambda n, m, t, p: jax.scipy.special.sph_harm_y(n, m, t, p, n_max=3), I % 3, I % 2, V, V)
    ],
    "special.zeta": [(jax.scipy.special.zeta, V + 2, V)],
}

_NN: dict[str, list[tuple[Any, ...]]] = {
    "dot_product_attention": [
        (jax.nn.dot_product_attention, QKV, QKV, QKV),
        (lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True), QKV, QKV, QKV),
    ],
}

_RANDOM: dict[str, list[tuple[Any, ...]]] = {
    "key_data": [(jax.random.key_data, KEY)],
    "multinomial": [
        (lambda key, n, p: jax.random.multinomial(key, n, p), KEY, np.float32(9), V / V.sum())
    ],
    "wrap_key_data": [
        (jax.random.wrap_key_data, np.arange(2, dtype=np.uint32)),
        (lambda x: jax.random.wrap_key_data(x, impl="rbg"), np.arange(4, dtype=np.uint32)),
    ],
    "PRNGKey": [(jax.random.PRNGKey, I[0])],
    "key": [(jax.random.key, I[0])],
}

_OPTAX: dict[str, list[tuple[Any, ...]]] = {
    "losses.ctc_loss": [
        (
            optax.losses.ctc_loss,
            LOGITS,
            np.zeros((2, 6), np.float32),
            np.asarray([[1, 2], [3, 1]]),
            np.zeros((2, 2), np.float32),
        )
    ],
    "losses.ctc_loss_with_forward_probs": [
        (
            optax.losses.ctc_loss_with_forward_probs,
            LOGITS,
            np.zeros((2, 6), np.float32),
            np.asarray([[1, 2], [3, 1]], np.int32),
            np.zeros((2, 2), np.float32),
        )
    ],
    "losses.make_fenchel_young_loss": [
        (optax.losses.make_fenchel_young_loss(jax.nn.logsumexp), V, V)
    ],
    "matrix_inverse_pth_root": [(lambda x: optax.matrix_inverse_pth_root(x, 4), SPD)],
    "microbatch": [(lambda x: optax.microbatch(lambda y: jnp.sum(y, 0), 0, 2)(x), M)],
    "multi_normal": [(lambda x: optax.multi_normal(x, x).log_prob(x), V)],
    "nnls": [(lambda a, b: optax.nnls(a, b, 3), SPD, V)],
    "scale_gradient": [(lambda x: optax.scale_gradient(x, 0.5), V)],
    "value_and_grad_from_state": [
        (lambda x: optax.value_and_grad_from_state(jnp.sum)(x, state=optax.lbfgs().init(x)), V)
    ],
    "tree_map_params": [
        (lambda x: optax.tree_map_params(optax.adam(0.1), jnp.sin, optax.adam(0.1).init(x)), V)
    ],
    "piecewise_constant_schedule": [(optax.piecewise_constant_schedule(0.1, {2: 0.5}), I[0])],
    "piecewise_interpolate_schedule": [
        (optax.piecewise_interpolate_schedule("cosine", 0.1, {2: 0.5}), I[0])
    ],
    "lookahead": [
        (
            lambda x, g: optax.lookahead(optax.sgd(0.1), 2, 0.5).update(
                g,
                optax.lookahead(optax.sgd(0.1), 2, 0.5).init(optax.LookaheadParams(x, x)),
                optax.LookaheadParams(x, x),
            ),
            V,
            V,
        )
    ],
}

CALLS: dict[str, list[tuple[Any, ...]]] = {
    f"{prefix}.{name}": calls
    for prefix, table in (
        ("jax.numpy", _NUMPY),
        ("jax.lax", _LAX),
        ("jax.scipy", _SCIPY),
        ("jax.nn", _NN),
        ("jax.random", _RANDOM),
        ("optax", _OPTAX),
    )
    for name, calls in table.items()
} | _inits()
"""For each function its calls: a function of arrays and the arrays."""
