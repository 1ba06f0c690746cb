"""Programs of the zoo, and their derivatives, are the same where their libraries are missing.

Both processes share a compilation cache of their own: equal StableHLO is compiled once.
`make zoo` does the same at real sizes.
"""

from __future__ import annotations

import itertools
import pathlib
import re

import hlo
import jax
import jax.numpy as jnp
import pytest
import resuming
import saved_functions
import transformed
import zoo
from jax.experimental.compilation_cache import compilation_cache
from zoo import arrays, exceptions

ENTRIES = zoo.entries()
NAMES = list(ENTRIES)
# A custom_vjp around loops, one around scans, and nested scans under vmap.
TRANSFORMED_IN_ALL_WAYS = ["deep_equilibrium", "blockwise_attention", "sequence_alignment"]
# Compiled in both processes, to show that equal StableHLO gives equal optimized HLO there.
COMPILED_TWICE = ["resnet50", "mixture_of_experts", "graph_attention", "kalman_filter"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A compilation cache that holds everything, for this process and the other one."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compilation_cache")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_enable_compilation_cache": True,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield options["jax_compilation_cache_dir"]
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def fresh(cache):
    process = resuming.Resumer(
        env={
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "JAX_ENABLE_COMPILATION_CACHE": "true",
        }
    )
    yield process
    process.close()


@pytest.fixture(scope="module")
def fresh_without_cache():
    process = resuming.Resumer(env={"JAX_ENABLE_COMPILATION_CACHE": "false"})
    yield process
    process.close()


def check_round_trip(name, folder, process, *, quickly):
    made = ENTRIES[name].make("reduced")
    args = made.init()
    saved_functions.save(folder, made.fn, args, updates=made.updates)
    lowered = made.jitted().lower(*args)

    answer = process.run(folder, quickly=quickly)

    assert answer["libraries"] == []
    texts = [
        hlo.canonical_stablehlo(lowered),
        hlo.canonical_stablehlo((folder / "imported.stablehlo").read_text()),
    ]
    if name not in exceptions.OTHER_STABLEHLO:
        assert texts[0] == texts[1], hlo.first_difference(*texts)
    compiled = lowered.compile(resuming.QUICKLY if quickly else None)
    optimized = [hlo.hlo_text(compiled), (folder / "imported.hlo").read_text()]
    difference = hlo.first_difference(*map(hlo.canonical_hlo, optimized))
    assert difference is None, difference
    expected = resuming.plain_leaves(compiled(*args))
    found = resuming.read_leaves(folder / "imported.npz")
    for one, other in zip(expected, found, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_program_is_the_same_in_a_process_without_its_libraries(name, tmp_path, fresh):
    check_round_trip(name, tmp_path, fresh, quickly=True)


@pytest.mark.parametrize("name", COMPILED_TWICE)
def test_two_compilations_give_one_program(name, tmp_path, fresh_without_cache):
    check_round_trip(name, tmp_path, fresh_without_cache, quickly=False)


def check_transformed(name, transformation, folder):
    """Transforms the original and what was imported, and demands the same program of both."""
    made = ENTRIES[name].make("reduced")
    args = made.init()
    saved_functions.save(folder, made.fn, args, updates=made.updates)
    imported, _ = saved_functions.load_function(folder)
    found = transformed.compare(transformation, made.jitted(), imported, args)
    assert found in ("-", exceptions.expected(name, transformation))


@pytest.mark.parametrize(
    ("name", "transformation"),
    list(zip(NAMES, itertools.cycle(("grad", "jvp", "vmap")), strict=False)),
)
def test_transformed_import_is_the_transformed_original(name, transformation, tmp_path):
    check_transformed(name, transformation, tmp_path)


@pytest.mark.parametrize("transformation", list(transformed.TRANSFORMATIONS))
@pytest.mark.parametrize("name", TRANSFORMED_IN_ALL_WAYS)
def test_all_transformations_of_the_import_are_the_originals(name, transformation, tmp_path):
    check_transformed(name, transformation, tmp_path)


def test_derivatives_are_compared_in_earnest():
    fn, other = (jax.jit(f) for f in (jnp.sin, lambda x: jnp.sin(x) * 1.0001))
    for transformation in transformed.TRANSFORMATIONS:
        assert transformed.compare(transformation, fn, fn, (jnp.ones(3),)) == "same program"
        with pytest.raises(AssertionError, match="first difference"):
            transformed.compare(transformation, fn, other, (jnp.ones(3),))


@pytest.mark.parametrize("name", ["llama", "gpt2_scanned"])
def test_repeated_layers_of_a_scan_are_one_function(name, tmp_path):
    shallow, deep = (ENTRIES[name].make("reduced", layers=layers) for layers in (2, 7))
    counts = [
        len(saved_functions.save(tmp_path, m.fn, jax.eval_shape(m.init), updates=True).functions)
        for m in (shallow, deep)
    ]
    assert counts[0] == counts[1]


def test_two_jitted_calls_of_a_layer_are_one_function(tmp_path):
    @jax.jit
    def layer(w, x):
        return jnp.tanh(x @ w)

    def model(weights, x):
        for w in weights:
            x = layer(w, x)
        return x

    counts = [
        len(
            saved_functions.save(
                tmp_path, model, (arrays.normal(n, 4, 4), arrays.normal(2, 4)), updates=False
            ).functions
        )
        for n in (2, 9)
    ]
    assert counts[0] == counts[1]


def test_page_lists_each_program_once():
    page = (pathlib.Path(__file__).parents[1] / "docs" / "zoo.md").read_text()
    listed = re.findall(r"^\| (\w+) \|", page, flags=re.MULTILINE)
    known = [name for name in listed if name != "program"]
    assert sorted(known) == sorted({*NAMES, *known}), "run make zoo"
    assert len(known) == len(set(known)) >= 45


def test_page_says_of_transformations_what_the_tests_demand():
    page = (pathlib.Path(__file__).parents[1] / "docs" / "zoo.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    kinds = ("grad", "jvp", "vmap")
    different = [
        (row[0], kind, cell)
        for row in rows
        if row[0] in ENTRIES
        for kind, cell in zip(kinds, row[-4:-1], strict=True)
        if cell not in ("-", exceptions.expected(row[0], kind))
    ]
    assert different == [], "run make zoo"
