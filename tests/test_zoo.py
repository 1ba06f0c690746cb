"""Programs of the zoo, and their derivatives, are the same where their libraries are missing.

Both processes share a compilation cache of their own: equal StableHLO is compiled once.
`make zoo` does the same at real sizes.
"""

from __future__ import annotations

import hlo
import jax
import pytest
import resuming
import saved_functions
import transformed
import zoo
from jax.experimental.compilation_cache import compilation_cache

ENTRIES = zoo.entries()
NAMES = list(ENTRIES)
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


def check_round_trip(name, folder, process):
    made = ENTRIES[name].make("reduced")
    args = made.init()
    saved_functions.save(folder, made.fn, args, updates=made.updates)
    lowered = made.jitted().lower(*args)

    answer = process.run(folder)

    assert answer["libraries"] == []
    texts = [
        hlo.canonical_stablehlo(lowered),
        hlo.canonical_stablehlo((folder / "imported.stablehlo").read_text()),
    ]
    assert texts[0] == texts[1], hlo.first_difference(*texts)
    compiled = lowered.compile()
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
    check_round_trip(name, tmp_path, fresh)


@pytest.mark.parametrize("name", COMPILED_TWICE)
def test_two_compilations_give_one_program(name, tmp_path, fresh_without_cache):
    check_round_trip(name, tmp_path, fresh_without_cache)


@pytest.mark.parametrize("name", NAMES)
def test_grad_jvp_and_vmap_of_the_imported_program_are_the_originals(name, tmp_path):
    made = ENTRIES[name].make("reduced")
    args = made.init()
    saved_functions.save(tmp_path, made.fn, args, updates=made.updates)
    imported, _ = saved_functions.load_function(tmp_path)
    for transformation in ("grad", "jvp", "vmap"):
        transformed.compare(transformation, made.jitted(), imported, args)
