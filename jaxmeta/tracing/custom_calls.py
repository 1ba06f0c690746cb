"""Eqns that no op says, carried as the compiler's own modules where the caller asks for it.

A carried eqn (a Pallas kernel, a call through FFI) is one ``XlaCallModule`` node. Its module is
what `jax.export` makes of the eqn for the platforms named, and runs on these only. It may call code
that is registered in the process that runs it, so that reading runs none without consent.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import jax
from jax import export

from jaxmeta import errors
from jaxmeta.tracing import jaxprs

_CUSTOM_CALL: Final = re.compile(r"stablehlo\.custom_call @([\w.$]+)")
_is_allowed: contextvars.ContextVar[bool] = contextvars.ContextVar("custom calls", default=False)


@contextlib.contextmanager
def allow_custom_calls() -> Iterator[None]:
    """Lets loaded programs run the custom calls that they carry, within a ``with`` block.

    Such a call may run any code that is registered in this process, with any arguments: allow it
    for files you trust. It matters while a function is traced, which its first call does.

    Example:
        >>> with allow_custom_calls():
        ...     pass  # run["train_step"](state, batch)
    """
    token = _is_allowed.set(True)
    try:
        yield
    finally:
        _is_allowed.reset(token)


def export_eqn(jaxpr: Any, eqn: Any, platforms: Sequence[str]) -> export.Exported:
    """Returns an eqn as a module for some platforms; typed keys show as their uint32 data.

    Raises:
        Exception: whatever `jax.export` has against it; Python callbacks always are refused.
    """
    run = _on_key_data(*jaxprs.eqn_as_function(jaxpr, eqn))
    avals = [jaxprs.physical_aval(atom.aval) for atom in eqn.invars]
    jitted = jax.jit(run, keep_unused=True)
    text = jitted.trace(*avals).lower(lowering_platforms=tuple(platforms)).as_text()
    targets = {name for name in _CUSTOM_CALL.findall(text) if "callback" not in name}
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in sorted(targets)]
    return export.export(jitted, platforms=tuple(platforms), disabled_checks=checks)(*avals)


def _on_key_data(run: Callable[..., Any], avals: Sequence[Any]) -> Callable[..., list[Any]]:
    def carried(*arrays: Any) -> list[Any]:
        operands = [
            jax.random.wrap_key_data(x, impl=jaxprs.key_layout(aval.dtype)[0])
            if jaxprs.is_key_dtype(aval.dtype)
            else x
            for x, aval in zip(arrays, avals, strict=True)
        ]
        results = run(*operands)
        return [jax.random.key_data(x) if jaxprs.is_key_dtype(x.dtype) else x for x in results]

    return carried


def module_as_function(
    module: bytes,
    version: int,
    platforms: Sequence[str],
    arguments: Sequence[Any],
    results: Sequence[Any],
    where: str,
) -> Callable[..., Any]:
    """Returns a module as a function that JAX calls on its platforms only.

    Args:
        module: portable StableHLO, whose main function takes and returns plain arrays.
        version: of `jax.export`'s calling convention.
        platforms: for which it was made, in JAX's words.
        arguments: shape and dtype of each.
        results: the same.
        where: the node, for messages.

    Raises:
        CustomCallError: custom calls are not allowed here.
        FormatError: this JAX cannot read the module.
    """
    if not _is_allowed.get():
        raise errors.CustomCallError(
            f"node {where!r} carries a module of custom calls, which may run any code that is "
            "registered in this process; if you trust the file, trace and run it within "
            "`with jaxmeta.allow_custom_calls():`"
        )
    oldest = export.minimum_supported_calling_convention_version
    newest = export.maximum_supported_calling_convention_version
    if not oldest <= version <= newest:
        raise errors.FormatError(
            f"node {where!r}: its module has calling convention {version}, this JAX reads "
            f"{oldest} to {newest}"
        )

    # All that an exported function records, from one of the same arguments and results.
    def like(*_: Any) -> list[Any]:
        return [jax.numpy.zeros(x.shape, x.dtype) for x in results]

    template = export.export(jax.jit(like, keep_unused=True), platforms=tuple(platforms))
    exported = dataclasses.replace(
        template(*arguments), mlir_module_serialized=module, calling_convention_version=version
    )
    try:
        exported.mlir_module()
    except Exception as error:
        raise errors.FormatError(f"node {where!r}: its module cannot be read: {error}") from error
    return exported.call
