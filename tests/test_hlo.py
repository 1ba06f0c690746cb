"""The comparison of programs: blind to names, sharp on everything else."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hlo import canonical_hlo, canonical_stablehlo, first_difference, hlo_text
from jax import lax

MATRIX = jax.ShapeDtypeStruct((8, 8), jnp.float32)
TABLE = np.arange(64, dtype=np.float32)


def step_with(
    scale: float = 0.5,
    table: np.ndarray = TABLE,
    swapped: bool = False,
    length: int = 3,
    shape_of_noise: tuple[int, ...] = (8, 8),
) -> Callable[[Any, Any], Any]:
    """A small train step with calls, a loop, a branch, random bits and a large constant."""

    def loss(weights: jax.Array, inputs: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(inputs @ weights) + jnp.asarray(table).reshape(8, 8)
        hidden = jnp.sin(jnp.tanh(hidden)) if not swapped else jnp.tanh(jnp.sin(hidden))
        hidden, _ = lax.scan(lambda c, t: (c @ weights * t, None), hidden, jnp.arange(length * 1.0))
        hidden = lax.cond(hidden.sum() > 0, jnp.sin, jnp.cos, hidden)
        noise = jax.random.normal(jax.random.key(1), shape_of_noise).sum()
        return jnp.sort(hidden).sum() * noise

    def train_step(weights: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(weights, inputs)
        return weights - scale * gradient, value

    return train_step


def renamed_step() -> Callable[[Any, Any], Any]:
    """The program of `step_with()` under other names, on other lines."""

    @functools.partial(jax.named_call, name="another_scope")
    def criterion(kernel_matrix: jax.Array, features: jax.Array) -> jax.Array:
        def body(carry: jax.Array, factor: jax.Array) -> tuple[jax.Array, None]:
            return carry @ kernel_matrix * factor, None

        with jax.named_scope("trunk {with} a %name"):
            state = jax.nn.relu(features @ kernel_matrix) + jnp.asarray(TABLE).reshape(8, 8)
            state = jnp.sin(jnp.tanh(state))
            state, _ = lax.scan(body, state, jnp.arange(3.0))
        state = lax.cond(state.sum() > 0, jnp.sin, jnp.cos, state)
        disturbance = jax.random.normal(jax.random.key(1), (8, 8)).sum()
        return jnp.sort(state).sum() * disturbance

    def advance(kernel_matrix: jax.Array, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        cost, slope = jax.value_and_grad(criterion)(kernel_matrix, features)
        new = kernel_matrix - 0.5 * slope
        return new, cost

    return advance


def compiled_lines(fn: Callable[[Any, Any], Any], **jit_options: Any) -> list[str]:
    return canonical_hlo(jax.jit(fn, **jit_options).lower(MATRIX, MATRIX).compile())


def lowered_text(fn: Callable[[Any, Any], Any], **jit_options: Any) -> str:
    return canonical_stablehlo(jax.jit(fn, **jit_options).lower(MATRIX, MATRIX))


@functools.cache
def original(canonical: Callable[..., Any]) -> Any:
    return canonical(step_with())


CANONICAL = pytest.mark.parametrize("canonical", [compiled_lines, lowered_text])


@CANONICAL
def test_same_function_traced_twice_is_identical(canonical: Callable[..., Any]) -> None:
    assert first_difference(original(canonical), canonical(step_with())) is None


@CANONICAL
def test_other_python_names_are_identical(canonical: Callable[..., Any]) -> None:
    assert first_difference(original(canonical), canonical(renamed_step())) is None


@CANONICAL
@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"scale": 0.25}, id="scalar constant"),
        pytest.param({"table": TABLE + (TABLE == 40)}, id="one element of a large constant"),
        pytest.param({"swapped": True}, id="order of two ops"),
        pytest.param({"length": 4}, id="trip count"),
        pytest.param({"shape_of_noise": (8, 4)}, id="shape"),
    ],
)
def test_other_programs_are_reported(
    canonical: Callable[..., Any], changed: dict[str, Any]
) -> None:
    assert first_difference(original(canonical), canonical(step_with(**changed))) is not None


@CANONICAL
def test_donation_is_reported(canonical: Callable[..., Any]) -> None:
    plain, donated = original(canonical), canonical(step_with(), donate_argnums=0)
    message = first_difference(plain, donated)
    assert message is not None
    assert "alias" in message


def test_order_of_operands_is_reported() -> None:
    forward = compiled_lines(lambda a, b: a - b)
    assert first_difference(forward, compiled_lines(lambda a, b: b - a)) is not None
    assert first_difference(forward, compiled_lines(lambda b, a: b - a)) is None


@CANONICAL
def test_nothing_of_the_source_is_left(canonical: Callable[..., Any]) -> None:
    lines = canonical(renamed_step())
    text = lines if isinstance(lines, str) else "\n".join(lines)
    for word in ("metadata", "kernel", "features", "advance", "criterion", "trunk", "test_hlo"):
        assert word not in text


def test_text_gives_what_the_compiled_function_gives() -> None:
    compiled = jax.jit(step_with()).lower(MATRIX, MATRIX).compile()
    assert canonical_hlo(hlo_text(compiled)) == canonical_hlo(compiled)


def test_shortened_constants_are_refused() -> None:
    compiled = jax.jit(lambda x: x * np.sqrt(np.arange(999.0))).lower(1.0).compile()
    with pytest.raises(ValueError, match="shortened constants"):
        canonical_hlo(compiled.as_text())
    assert len(canonical_hlo(compiled)) > 3


def test_tables_config_names_and_control_edges() -> None:
    text = """HloModule jit_f.7, is_scheduled=true

FileNames
1 "/home/me/{odd} %name.py"

StackFrames
1 {file_location_id=1 parent_frame_id=1}


%body.4 (x.1: f32[], y.2: (s32[], /*index=1*/f32[])) -> f32[] {
  %x.1 = f32[] parameter(0), metadata={op_name="jit(f)/a{b} %c \\"q\\"" stack_frame_id=1}
  %y.2 = (s32[], f32[]) parameter(1)
  ROOT %add.9 = f32[] add(%x.1, %x.1), control-predecessors={%y.2}
}

ENTRY %main.8 (p.1: f32[]) -> f32[] {
  %x.1 = f32[] parameter(0), metadata={op_name="p"}
  ROOT %call.3 = f32[] call(%x.1), to_apply=%body.4, backend_config={"name":"f","kind":"%k","n":[]}
}
"""
    assert canonical_hlo(text) == [
        "HloModule, is_scheduled=true",
        "%computation_0 (f32[], (s32[], f32[])) -> f32[] {",
        "  %0 = f32[] parameter(0)",
        "  %1 = (s32[], f32[]) parameter(1)",
        "  ROOT %2 = f32[] add(%0, %0), control-predecessors={%1}",
        "}",
        "ENTRY %computation_1 (f32[]) -> f32[] {",
        "  %0 = f32[] parameter(0)",
        '  ROOT %1 = f32[] call(%0), to_apply=%computation_0, backend_config={"kind":"%k","n":[]}',
        "}",
    ]


def test_stablehlo_locations_and_symbols() -> None:
    text = """#loc1 = loc("x")
module @jit_f attributes {mhlo.num_partitions = 1 : i32} {
  func.func public @main(%arg0: tensor<f32> loc("x"(#loc1))) -> (tensor<f32> {jax.result_info = "result"}) {
    %0 = call @_where_3(%arg0) : (tensor<f32>) -> tensor<f32> loc(#loc1)
    %1 = stablehlo.custom_call @_where_3(%0) : (tensor<f32>) -> tensor<f32>
    return %1 : tensor<f32>
  }
  func.func private @_where_3(%arg0: tensor<f32> {jax.buffer_donor = true}) -> tensor<f32> {
    return %arg0 : tensor<f32>
  }
}
"""  # noqa: E501
    assert canonical_stablehlo(text).splitlines() == [
        "module attributes {mhlo.num_partitions = 1 : i32} {",
        "  func.func public @main(%arg0: tensor<f32>) -> (tensor<f32>) {",
        "    %0 = call @function_0(%arg0) : (tensor<f32>) -> tensor<f32>",
        "    %1 = stablehlo.custom_call @_where_3(%0) : (tensor<f32>) -> tensor<f32>",
        "    return %1 : tensor<f32>",
        "  }",
        "  func.func private @function_0(%arg0: tensor<f32> {jax.buffer_donor = true})"
        " -> tensor<f32> {",
        "    return %arg0 : tensor<f32>",
        "  }",
        "}",
    ]


def test_message_shows_line_context_and_counts() -> None:
    a = ["HloModule", "  %0 = f32[] parameter(0)", "  %1 = f32[] add(%0, %0)", "}"]
    b = ["HloModule", "  %0 = f32[] parameter(0)", "  %1 = f32[] multiply(%0, %0)", "}"]
    assert first_difference(a, b, context=1) == "\n".join(
        [
            "first difference at line 3; a has 4 lines, b has 4",
            "      %0 = f32[] parameter(0)",
            "a >   %1 = f32[] add(%0, %0)",
            "a   }",
            "b >   %1 = f32[] multiply(%0, %0)",
            "b   }",
            "op counts: add 1 -> 0, multiply 0 -> 1",
        ]
    )
    assert "<end of the text>" in (first_difference(a, a[:2]) or "")
