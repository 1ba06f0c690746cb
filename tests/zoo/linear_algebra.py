"""Linear algebra: factorisations, solvers and what is built of them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from . import arrays
from .entry import Made, program


@program("plain", reduced={"rows": 5, "columns": 3}, real={"rows": 2000, "columns": 200})
def least_squares(rows: int, columns: int) -> Made:
    """Least squares by QR, SVD, normal equations and LU, condition numbers, a pseudo-inverse."""

    def solve(a: jax.Array, b: jax.Array) -> Any:
        q, r = jnp.linalg.qr(a)
        by_qr = jax.scipy.linalg.solve_triangular(r, q.T @ b)
        u, s, vt = jnp.linalg.svd(a, full_matrices=False)
        by_svd = vt.T @ ((u.T @ b) / s[:, None])
        gram = a.T @ a + 1e-3 * jnp.eye(columns)
        by_lu = jax.scipy.linalg.lu_solve(jax.scipy.linalg.lu_factor(gram), a.T @ b)
        by_cholesky = jnp.linalg.solve(gram, a.T @ b)
        return {
            "solutions": jnp.stack([by_qr, by_svd, by_lu, by_cholesky]),
            "condition": s[0] / s[-1],
            "determinant": jnp.linalg.slogdet(gram),
            "inverse": jnp.linalg.inv(gram),
            "norms": jnp.stack([jnp.linalg.norm(a, o) for o in (1, "fro", "nuc", jnp.inf)]),
        }

    return Made(solve, lambda: (arrays.normal(rows, columns), arrays.normal(rows, 2)))


@program("plain", reduced={"points": 5, "features": 4}, real={"points": 5000, "features": 512})
def spectral_methods(points: int, features: int) -> Made:
    """PCA whitening by eigh, power iteration in a while loop, a graph Laplacian, expm, orgqr."""

    def analyse(x: jax.Array) -> Any:
        centered = x - jnp.mean(x, axis=0)
        values, vectors = jnp.linalg.eigh(centered.T @ centered / points)
        white = centered @ vectors / jnp.sqrt(values + 1e-3)
        covariance = jnp.cov(x, rowvar=False)

        def step(carry: Any) -> Any:
            v, _, count = carry
            w = covariance @ v
            w = w / jnp.linalg.norm(w)
            return w, jnp.linalg.norm(w - v), count + 1

        going = lambda carry: (carry[1] > 1e-4) & (carry[2] < 30)  # noqa: E731
        start = jnp.ones(features) / features**0.5, jnp.float32(1.0), jnp.int32(0)
        top, _, count = lax.while_loop(going, step, start)
        heat = jax.scipy.linalg.expm(-0.1 * covariance)
        return {"white": white, "values": values, "top": jnp.abs(top), "steps": count, "heat": heat}

    return Made(analyse, lambda: (arrays.normal(points, features),))
