"""What is not the same program after a transformation, and why.

The tests and `docs/make_zoo_page.py` demand the same program of all that is not listed here.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax

SAME_PROGRAM = "same program"
SAME_BITS = "same bits"
REFUSED = "refused"

_WHILE = "JAX has no reverse mode of while loops."
_CUSTOM_VJP = "JAX has no forward mode of custom_vjp."
_ONE_DERIVATIVE = "Its rule refuses to be differentiated once more."
_RESIDUALS = "The residuals of its adjoint come in another order."
_TWO_LITERALS = "A number that stands twice in a scan is one residual, not two."
_TWO_FUNCTIONS = "The transpose of a solve is a function of its own, not the solve's."
# Of nan's broadcast, and of numbers that the library's functions close over.
_CONSTANTS = "Constants of its library's checks stand elsewhere; the optimized HLO is the same."

# What takes a gradient, of all that `transformed` knows.
_OF_GRADIENTS = (
    "grad",
    "vjp",
    "hessian_vector",
    "vmap_of_grad",
    "remat",
    "third",
    "grad_of_grad",
    "grad_of_vmap",
    "jacobians",
    "hessian",
    "remat_with_policy",
)

# Program -> transformation -> what comes of it and why.
_EXCEPTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "gpt2_scanned": {"grad": (SAME_BITS, _TWO_LITERALS)},
    "normalizing_flow": {"grad": (SAME_BITS, _TWO_FUNCTIONS)},
    "neural_ode": {"grad": (SAME_BITS, _RESIDUALS), "jvp": (REFUSED, _CUSTOM_VJP)},
    "neural_ode_diffrax": {
        "grad": (REFUSED, _WHILE),
        "jvp": (REFUSED, _CUSTOM_VJP),
        "vmap": (SAME_BITS, _CONSTANTS),
    },
    "neural_ode_backsolve": {
        "grad": (REFUSED, _ONE_DERIVATIVE),
        "jvp": (REFUSED, _ONE_DERIVATIVE),
        "vmap": (SAME_BITS, _CONSTANTS),
    },
    "lbfgs": {"grad": (REFUSED, _WHILE)},
    "bfgs": {"grad": (REFUSED, _WHILE)},
    "k_means": {"grad": (REFUSED, _WHILE)},
    "spectral_methods": {"grad": (REFUSED, _WHILE)},
    "deep_equilibrium": {
        "jvp": (REFUSED, _CUSTOM_VJP),
        **dict.fromkeys(_OF_GRADIENTS, (REFUSED, _WHILE)),
    },
}
# Programs whose StableHLO is another one before any transformation.
OTHER_STABLEHLO = {"neural_ode_diffrax": _CONSTANTS, "neural_ode_backsolve": _CONSTANTS}


if jax.__version_info__ >= (0, 12):
    _EXCEPTIONS["nerf"] = {"vmap": (SAME_BITS, "JAX batches searchsorted before it expands it.")}


def expected(program: str, transformation: str) -> str:
    """Returns how a transformed program agrees with its original, as `transformed.compare` says."""
    found, _ = _EXCEPTIONS.get(program, {}).get(transformation, (SAME_PROGRAM, ""))
    return found


def reasons(program: str) -> Iterator[str]:
    """Yields why a program is an exception, once for each reason."""
    found = [reason for _, reason in _EXCEPTIONS.get(program, {}).values()]
    yield from dict.fromkeys(filter(None, [OTHER_STABLEHLO.get(program), *found]))
