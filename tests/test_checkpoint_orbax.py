"""Orbax directories: what comes back, what plain Orbax sees, what is refused, what damage does."""

import json
import logging
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxmeta import errors
from jaxmeta.checkpoint import (
    CheckpointWriter,
    atomic,
    layout,
    orbax_reader,
    read_specs,
    restore,
)

REPOSITORY = Path(__file__).parents[1]

DTYPES = [
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64",
    "complex64 complex128 bfloat16 int2 int4 uint2 uint4 float4_e2m1fn float8_e3m4 float8_e4m3",
    "float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu",
]
# TensorStore has no such types; they lie in the checkpoint as uint8.
VIEWED = {"uint2", "uint4", "float8_e4m3"}


def save(directory: Path | str, arrays: Mapping[str, Any]) -> None:
    with CheckpointWriter() as writer:
        writer.save(directory, arrays)


def restore_all(directory: Path | str) -> dict[str, jax.Array]:
    return restore(directory, read_specs(directory))


def assert_same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert isinstance(found[name], jax.Array)
        value, wanted = np.asarray(found[name]), np.asarray(array)
        assert (value.shape, value.dtype) == (wanted.shape, wanted.dtype), name
        assert value.tobytes() == wanted.tobytes(), name


def random_bits(dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """All bit patterns, NaNs of every payload among them, that fit the type."""
    bits = np.random.default_rng(0).integers(0, 256, (*shape, dtype.itemsize), dtype=np.uint8)
    if dtype == bool:
        return (bits[..., 0] % 2).astype(bool)
    if dtype.name in {"int2", "int4", "uint2", "uint4", "float4_e2m1fn"}:
        values = bits[..., 0] % 2 ** (4 if "4" in dtype.name else 2)
        return values.view(dtype) if dtype.name[0] in "uf" else values.astype(np.int8).astype(dtype)
    return bits.view(dtype)[..., 0]


def run_python(code: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


# --- what comes back ---------------------------------------------------------------------------


@pytest.mark.parametrize("x64", [False, True])
def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path, x64: bool) -> None:
    names = " ".join(DTYPES).split()
    dtypes = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in names}
    arrays = {name: random_bits(dtype, (3, 5)) for name, dtype in dtypes.items()}
    with jax.enable_x64(x64):
        save(tmp_path / "model", arrays)
        assert_same(restore_all(tmp_path / "model"), arrays)


def test_plain_orbax_sees_each_dtype_or_its_bits(tmp_path: Path) -> None:
    dtypes = [np.dtype(getattr(ml_dtypes, name, name)) for name in " ".join(DTYPES).split()]
    arrays = {dtype.name: random_bits(dtype, (4,)) for dtype in dtypes}
    save(tmp_path / "model", arrays)
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(tmp_path / "model")
    for name, array in arrays.items():
        assert tree[name].dtype == ("uint8" if name in VIEWED else array.dtype)
        assert tree[name].tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "shape", [(), (0,), (3, 0, 2), (1,), (7, 1, 3), (2_500_001,), (3, 900_000)]
)
def test_every_shape_comes_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    arrays = {"x": np.arange(np.prod(shape), dtype=np.float32).reshape(shape)}
    save(tmp_path / "model", arrays)
    assert_same(restore_all(tmp_path / "model"), arrays)


def test_no_arrays_come_back_as_none(tmp_path: Path) -> None:
    save(tmp_path / "model", {})
    assert read_specs(tmp_path / "model") == {}
    assert restore(tmp_path / "model", {}) == {}
    with ocp.StandardCheckpointer() as checkpointer:
        assert checkpointer.restore(tmp_path / "model") == {}


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_prng_keys_are_stored_as_key_data_and_come_back_as_asked(tmp_path: Path, impl: str) -> None:
    keys = jax.random.split(jax.random.key(7, impl=impl), 3)
    save(tmp_path / "model", {"key": keys})
    data = restore_all(tmp_path / "model")["key"]
    assert_same({"key": data}, {"key": jax.random.key_data(keys)})
    typed = restore(tmp_path / "model", {"key": jax.eval_shape(lambda: keys)})["key"]
    assert typed.dtype == keys.dtype
    assert_same({"key": jax.random.key_data(typed)}, {"key": data})


def test_foreign_byte_orders_and_strides_come_back_as_values(tmp_path: Path) -> None:
    matrix = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    save(tmp_path / "model", {"big": matrix.astype(">f4"), "t": matrix.T, "s": np.float32(2)})
    assert_same(restore_all(tmp_path / "model"), {"big": matrix, "t": matrix.T, "s": np.float32(2)})


def test_save_takes_what_arrays_hold_when_it_is_called(tmp_path: Path) -> None:
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    value, array = jnp.zeros(1 << 20) + 1, np.ones(1 << 20, np.float32)
    with CheckpointWriter() as writer:
        writer.save(tmp_path / "model", {"jax": value, "numpy": array})
        array[:] = 5
        for _ in range(5):
            value = step(value)
    ones = np.ones(1 << 20, np.float32)
    assert_same(restore_all(tmp_path / "model"), {"jax": ones, "numpy": ones})


def test_restore_reads_only_what_is_asked_for(tmp_path: Path) -> None:
    save(tmp_path / "model", {"a": np.ones(3), "b": np.zeros(2)})
    found = restore(tmp_path / "model", {"b": jax.ShapeDtypeStruct((2,), np.float64)})
    assert_same(found, {"b": np.zeros(2)})


def test_restore_puts_arrays_where_their_spec_says(tmp_path: Path) -> None:
    save(tmp_path / "model", {"a": np.ones(3, np.float32)})
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    spec = jax.ShapeDtypeStruct((3,), np.float32, sharding=sharding)
    assert restore(tmp_path / "model", {"a": spec})["a"].committed
    assert not restore(tmp_path / "model", {"a": spec.update(sharding=None)})["a"].committed


SHARDS = """
import sys, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxmeta.checkpoint import CheckpointWriter, restore
mesh = jax.make_mesh((2, 2), ("x", "y"))
def place(array, *spec):
    return jax.device_put(array, NamedSharding(mesh, P(*spec)))
grid = np.arange(6 * 700_000, dtype=np.float32).reshape(6, 700_000)
specs = {"both": ("x", "y"), "rows": ("x",), "columns": (None, "y"), "none": ()}
arrays = {name: place(grid, *spec) for name, spec in specs.items()}
arrays["key"] = jax.device_put(jax.random.key(3), NamedSharding(mesh, P()))
with CheckpointWriter() as writer:
    writer.save(sys.argv[1], arrays)
turned = dict(zip(specs, list(specs.values())[1:] + [("x", "y")]))
asked = {
    name: jax.ShapeDtypeStruct(grid.shape, grid.dtype, sharding=NamedSharding(mesh, P(*spec)))
    for name, spec in turned.items()
}
asked["key"] = jax.ShapeDtypeStruct((), arrays["key"].dtype, sharding=arrays["key"].sharding)
found = restore(sys.argv[1], asked)
for name, spec in asked.items():
    assert found[name].sharding == spec.sharding, name
    if name != "key":
        np.testing.assert_array_equal(np.asarray(found[name]), grid)
assert jax.random.bits(found["key"]) == jax.random.bits(jax.random.key(3))
assert "orbax.checkpoint" not in sys.modules
import orbax.checkpoint as ocp
with ocp.StandardCheckpointer() as checkpointer:
    for value in (tree := checkpointer.restore(sys.argv[1])).values():
        assert value is tree["key"] or (value == grid).all()
"""


def test_sharded_arrays_come_back_under_other_shardings(tmp_path: Path) -> None:
    flags = "--xla_force_host_platform_device_count=4"
    finish(run_python(SHARDS, tmp_path / "model", XLA_FLAGS=flags))


PROCESSES = """
import os, sys, jax, numpy as np
from jaxmeta.checkpoint import CheckpointWriter, restore
port, process, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, process)
from jax.sharding import NamedSharding, PartitionSpec as P
sharding = NamedSharding(jax.make_mesh((2,), ("x",)), P("x"))
grid = np.arange(8.0, dtype=np.float32).reshape(4, 2)
def log():
    with open(directory + "/log", "a") as file:
        file.write(f"{process}:{os.path.isdir(directory + '/model')}\\n")
with CheckpointWriter() as writer:
    for step in range(2):
        value = jax.make_array_from_callback((4, 2), sharding, lambda i: grid[i] + step)
        writer.save(directory + "/model", {"w": value, "w/n": np.float32(step)}, on_commit=log)
specs = {"w": jax.ShapeDtypeStruct((4, 2), "float32", sharding=sharding)}
for shard in restore(directory + "/model", specs)["w"].addressable_shards:
    np.testing.assert_array_equal(np.asarray(shard.data), grid[shard.index] + 1)
"""


@pytest.mark.slow
def test_arrays_across_processes_are_saved_by_orbax_itself(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [run_python(PROCESSES, port, index, tmp_path) for index in range(2)]
    for process in processes:
        finish(process)
    assert (tmp_path / "log").read_text() == "0:True\n0:True\n"
    assert sorted(os.listdir(tmp_path)) == ["log", "model"]
    assert np.asarray(restore_all(tmp_path / "model")["w/n"]) == 1


# --- names, and the tree that plain Orbax sees -------------------------------------------------

TRICKY = [
    "a",
    "a/b",
    "a/b/c",
    "a.b",
    "a.b/c",
    "a/b.c",
    "x//y",
    "/",
    "",
    "50%",
    "%25",
    "%_",
    "a%",
    "ü/λ",
]


def test_plain_orbax_restores_the_nested_dict(tmp_path: Path) -> None:
    arrays = {"params/Dense_0/kernel": np.ones((2, 3)), "params/Dense_0/bias": np.zeros(3), "n": 7}
    save(tmp_path / "model", {name: np.asarray(array) for name, array in arrays.items()})
    for checkpointer in (ocp.StandardCheckpointer(), ocp.PyTreeCheckpointer()):
        with checkpointer:
            tree = checkpointer.restore(tmp_path / "model")
        assert jax.tree.map(np.ndarray.tolist, tree) == {
            "params": {"Dense_0": {"kernel": [[1] * 3] * 2, "bias": [0] * 3}},
            "n": 7,
        }


def test_plain_orbax_restores_to_devices(tmp_path: Path) -> None:
    save(tmp_path / "model", {"a/b": np.ones(3, np.float32)})
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {"a": {"b": jax.ShapeDtypeStruct((3,), np.float32, sharding=sharding)}}
    with ocp.StandardCheckpointer() as checkpointer:
        value = checkpointer.restore(tmp_path / "model", target)["a"]["b"]
    assert_same({"b": value}, {"b": np.ones(3, np.float32)})
    assert value.sharding == sharding


@pytest.mark.parametrize("options", [{}, {"use_zarr3": True}, {"use_ocdbt": False}])
def test_what_plain_orbax_saved_is_restored(tmp_path: Path, options: dict[str, bool]) -> None:
    tree = {
        "a": {"b.c": jnp.ones((2, 3)), "d": np.arange(3)},
        "s": 3,
        "none": None,
        "l": [jnp.ones(1)],
    }
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(tmp_path / "model", args=ocp.args.PyTreeSave(tree))
    expected = {"a/b.c": np.ones((2, 3), np.float32), "a/d": np.arange(3), "s": 3}
    expected["l/0"] = np.ones(1, np.float32)
    found = restore_all(tmp_path / "model")
    assert_same(found, {name: np.asarray(array) for name, array in expected.items()})


def test_tricky_names_come_back_and_plain_orbax_can_restore_them(tmp_path: Path) -> None:
    arrays = {name: np.full(2, number) for number, name in enumerate(TRICKY)}
    save(tmp_path / "model", arrays)
    assert_same(restore_all(tmp_path / "model"), arrays)
    with ocp.StandardCheckpointer() as checkpointer:
        leaves = jax.tree.flatten_with_path(checkpointer.restore(tmp_path / "model"))[0]
    found = {layout.name_from_path([key.key for key in path]): leaf for path, leaf in leaves}
    assert {name: leaf.tolist() for name, leaf in found.items()} == {
        name: array.tolist() for name, array in arrays.items()
    }


@pytest.mark.parametrize("seed", range(300))
def test_tree_paths_are_reversible_and_do_not_collide(seed: int) -> None:
    rng = random.Random(seed)
    names = {"".join(rng.choices("ab./%2E5_", k=rng.randrange(7))) for _ in range(seed % 10)}
    paths = layout.tree_paths(names)
    assert {name: layout.name_from_path(path) for name, path in paths.items()} == {
        name: name for name in names
    }
    assert len({layout.array_key(path) for path in paths.values()}) == len(names)
    inner = {path[:depth] for path in paths.values() for depth in range(1, len(path))}
    assert not inner & set(paths.values())


def test_ordinary_names_are_not_escaped() -> None:
    names = ["layer.0/kernel", "layer.0/bias", "step"]
    assert ["/".join(path) for path in layout.tree_paths(names).values()] == names


# --- what is refused ---------------------------------------------------------------------------


def test_save_names_everything_it_cannot_store(tmp_path: Path) -> None:
    deleted = jnp.ones(3)
    deleted.delete()
    arrays = {"o": np.array([None]), "s": np.array("x"), "f": 1.5, "d": deleted, "a\nb": np.ones(1)}
    with CheckpointWriter() as writer, pytest.raises(errors.CheckpointError) as caught:
        writer.save(tmp_path / "model", arrays)  # type: ignore[arg-type]
    assert "5 arrays cannot be stored" in str(caught.value)
    for line in (
        "'o': strings have no form in Orbax",
        "'s': dtype <U1 has no form",
        "'f': is a float, not an array",
        "'d': is deleted; it was donated",
        "'a\\nb': the name is not a printable",
    ):
        assert line in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_save_refuses_traced_arrays(tmp_path: Path) -> None:
    writer = CheckpointWriter()

    @jax.jit
    def step(value: jax.Array) -> jax.Array:
        writer.save(tmp_path / "model", {"x": value})
        return value

    with pytest.raises(errors.CheckpointError, match=r"'x': is traced; save outside of jit"):
        step(jnp.ones(3))


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_save_does_not_replace_what_is_no_checkpoint(tmp_path: Path, kind: str) -> None:
    (tmp_path / "model").write_text("") if kind == "file" else (tmp_path / "model/x").mkdir(
        parents=True
    )
    with CheckpointWriter() as writer, pytest.raises(errors.CheckpointError, match="no Orbax"):
        writer.save(tmp_path / "model", {"x": np.ones(1)})


def test_restore_lists_all_differences_at_once(tmp_path: Path) -> None:
    save(tmp_path / "model", {"params/kernel": np.ones((2, 3), np.float32), "step": np.int32(3)})
    specs = {
        "params/kernal": jax.ShapeDtypeStruct((2, 3), np.float32),
        "zzz": jax.ShapeDtypeStruct((), np.float32),
        "params/kernel": jax.ShapeDtypeStruct((3, 2), np.float32),
        "step": jax.ShapeDtypeStruct((), np.int64),
    }
    with pytest.raises(errors.CheckpointError) as caught:
        restore(tmp_path / "model", specs)
    assert str(caught.value) == (
        f"checkpoint {tmp_path}/model does not fit: 2 names missing, 1 shapes and 1 dtypes "
        "different\n"
        "  'params/kernal' is missing; close: params/kernel\n"
        "  'zzz' is missing\n"
        "  'params/kernel': shape (2, 3) is stored, (3, 2) is asked for\n"
        "  'step': dtype int32 is stored, int64 is asked for\n"
        "Restore the checkpoint that was saved with this program, or ask for what this one has: "
        "read_specs lists it."
    )


def half_written(path: Path) -> None:
    (path / "d").mkdir(parents=True)


def inside_a_manager(path: Path) -> None:
    save(path / "default", {"x": np.ones(1)})


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: None, "no checkpoint at .*/model-10; close: model-1$"),
        (lambda path: path.write_text("x"), "is a file, not an Orbax directory"),
        (lambda path: Path(f"{path}.index").write_text("x"), "prefix of a TensorFlow checkpoint"),
        (half_written, "its save did not finish"),
        (inside_a_manager, "these in it are: .*/model-10/default"),
    ],
    ids=["missing", "file", "bundle", "half_written", "manager"],
)
def test_restore_says_what_is_there_instead_of_a_checkpoint(
    tmp_path: Path, prepare: Callable[[Path], None], message: str
) -> None:
    save(tmp_path / "model-1", {"x": np.ones(1)})
    prepare(tmp_path / "model-10")
    with pytest.raises(errors.CheckpointError, match=message):
        read_specs(tmp_path / "model-10")
    with pytest.raises(errors.CheckpointError, match=message):
        restore(tmp_path / "model-10", {})


def test_a_format_of_the_future_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(layout, "FORMAT_VERSION", 99)
        save(tmp_path / "model", {"x": np.ones(1)})
    with pytest.raises(errors.CheckpointError, match="has format 99, and this jaxmeta reads up to"):
        read_specs(tmp_path / "model")


# --- damage ------------------------------------------------------------------------------------


def damages(content: bytes) -> list[bytes | None]:
    """Removed, empty, cut, and single bits turned at random places."""
    places = random.Random(0).sample(range(len(content)), min(len(content), 25))
    flipped = [content[:i] + bytes([content[i] ^ (1 << i % 8)]) + content[i + 1 :] for i in places]
    return [None, b"", content[: len(content) // 2], content[:-1], content[1:], *flipped]


def test_any_damage_gives_an_error_or_the_right_values(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"layer_{i}/w": rng.standard_normal((i * 300 + 5,)) for i in range(4)}
    arrays["empty"], arrays["u4"] = np.zeros((0, 2)), np.arange(9).astype(ml_dtypes.uint4)
    save(tmp_path / "whole", arrays)
    specs = read_specs(tmp_path / "whole")
    found_by = dict.fromkeys(("error", "right"), 0)
    for file in [path for path in (tmp_path / "whole").rglob("*") if path.is_file()]:
        for content in damages(file.read_bytes()):
            damaged = tmp_path / "damaged"
            shutil.rmtree(damaged, ignore_errors=True)
            shutil.copytree(tmp_path / "whole", damaged)
            place = damaged / file.relative_to(tmp_path / "whole")
            place.unlink() if content is None else place.write_bytes(content)
            try:
                assert_same(restore(damaged, specs), arrays)
                found_by["right"] += 1
            except errors.CheckpointError:
                found_by["error"] += 1
    assert found_by["error"] > 50


def test_damage_in_an_array_is_found_by_plain_orbax_too(tmp_path: Path) -> None:
    save(tmp_path / "model", {"x": np.ones(100_000, np.float32), "y": np.ones(2)})
    data = max((tmp_path / "model/d").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(
        errors.CheckpointError, match=r"1 arrays cannot be read\n  'x': .*Digest mismatch"
    ):
        restore_all(tmp_path / "model")
    with (
        ocp.StandardCheckpointer() as checkpointer,
        pytest.raises(Exception, match="Digest mismatch"),
    ):
        checkpointer.restore(tmp_path / "model")


def test_a_damaged_array_that_is_not_asked_for_does_not_matter(tmp_path: Path) -> None:
    save(tmp_path / "model", {"x": np.ones(100_000, np.float32), "y": np.ones(2)})
    data = max((tmp_path / "model/d").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[:1000] = bytes(1000)
    data.write_bytes(content)
    spec = jax.ShapeDtypeStruct((2,), np.float64)
    assert_same(restore(tmp_path / "model", {"y": spec}), {"y": np.ones(2)})


def test_chunks_larger_than_their_array_are_refused(tmp_path: Path) -> None:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(tmp_path / "model", args=ocp.args.PyTreeSave({"x": np.ones(3)}))
    file = tmp_path / "model/x/.zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chunks": [1 << 40]}))
    with pytest.raises(errors.CheckpointError, match="exceed shape"):
        restore_all(tmp_path / "model")


# --- the writer --------------------------------------------------------------------------------


@pytest.mark.parametrize("blocking", [False, True])
def test_on_commit_runs_once_when_the_directory_is_in_place(tmp_path: Path, blocking: bool) -> None:
    found: list[Any] = []

    def look() -> None:
        found.append((restore_all(tmp_path / "model")["x"].item(), threading.current_thread()))

    with CheckpointWriter(blocking=blocking) as writer:
        for step in range(3):
            writer.save(tmp_path / "model", {"x": np.float32(step)}, on_commit=look)
            if blocking:
                assert len(found) == step + 1
    assert [value for value, _ in found] == [0, 1, 2]
    assert all((thread is threading.main_thread()) == blocking for _, thread in found)


def fail() -> None:
    raise OSError("the disk is full")


@pytest.mark.parametrize("action", ["save", "wait_until_finished", "close"])
def test_an_error_in_the_background_is_logged_and_raised_once(
    tmp_path: Path, action: str, caplog: pytest.LogCaptureFixture
) -> None:
    writer = CheckpointWriter()
    writer.save(tmp_path / "model", {"x": np.ones(1)}, on_commit=fail)
    arguments = [tmp_path / "model", {"x": np.ones(1)}] if action == "save" else []
    with pytest.raises(OSError, match="the disk is full"):
        getattr(writer, action)(*arguments)
    writer.wait_until_finished()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_a_failed_write_leaves_the_old_checkpoint_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "model", {"x": np.float32(1)})
    monkeypatch.setattr(layout, "metadata_files", lambda paths: fail())
    with pytest.raises(OSError, match="the disk is full"):
        save(tmp_path / "model", {"x": np.float32(2)})
    assert os.listdir(tmp_path) == ["model"]
    assert restore_all(tmp_path / "model")["x"] == 1


def test_a_closed_writer_takes_no_more(tmp_path: Path) -> None:
    with CheckpointWriter() as writer:
        pass
    with pytest.raises(errors.CheckpointError, match="the writer is closed"):
        writer.save(tmp_path / "model", {})


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_checkpoint_is_replaced_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    for step in range(3):
        save(tmp_path / "model", {"x": np.float32(step)})
        assert restore_all(tmp_path / "model")["x"] == step
        assert os.listdir(tmp_path) == ["model"]


def test_a_checkpoint_that_a_kill_left_aside_is_found(tmp_path: Path) -> None:
    save(tmp_path / "model", {"x": np.float32(1)})
    os.rename(tmp_path / "model", f"{tmp_path}/model{atomic.PREVIOUS_SUFFIX}")
    assert restore_all(tmp_path / "model")["x"] == 1
    save(tmp_path / "model", {"x": np.float32(2)})
    assert os.listdir(tmp_path) == ["model"]


def test_a_link_to_a_checkpoint_stays_a_link(tmp_path: Path) -> None:
    save(tmp_path / "model", {"x": np.float32(1)})
    (tmp_path / "link").symlink_to("model")
    save(tmp_path / "link", {"x": np.float32(2)})
    assert (tmp_path / "link").is_symlink()
    assert restore_all(tmp_path / "model")["x"] == 2


def test_restore_starts_again_where_the_checkpoint_was_replaced_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = np.zeros(1000, np.float32), np.ones(1000, np.float32)
    save(tmp_path / "model", {"x": old})
    read_index = orbax_reader._read_index

    def replace_after_the_index_was_read(directory: str) -> Any:
        monkeypatch.setattr(orbax_reader, "_read_index", read_index)
        index = read_index(directory)
        save(tmp_path / "model", {"x": new})
        return index

    monkeypatch.setattr(orbax_reader, "_read_index", replace_after_the_index_was_read)
    spec = jax.ShapeDtypeStruct((1000,), np.float32)
    assert_same(restore(tmp_path / "model", {"x": spec}), {"x": new})


def test_what_dead_processes_left_is_removed_and_what_others_write_stays(tmp_path: Path) -> None:
    (tmp_path / f"dead{atomic.STAGING_SUFFIX}/d").mkdir(parents=True)
    (tmp_path / f"file{atomic.STAGING_SUFFIX}").touch()
    with atomic.NewDirectory(tmp_path / "other") as other:
        save(tmp_path / "model", {"x": np.ones(1)})
        assert sorted(os.listdir(tmp_path)) == ["model", os.path.basename(other.path)]
    assert sorted(os.listdir(tmp_path)) == ["model", "other"]


AT_EXIT = """
import atexit, sys, numpy as np
from jaxmeta.checkpoint import CheckpointWriter
arrays = {f"v{number}": np.full(10_000, number) for number in range(200)}
writer = CheckpointWriter()
writer.save(sys.argv[1] + "/1", arrays, on_commit=lambda: print("committed 1"))
def save_again():
    writer.save(sys.argv[1] + "/2", arrays, on_commit=lambda: print("committed 2"))
atexit.register(save_again)
assert "orbax.checkpoint" not in sys.modules
"""


def test_a_normal_exit_waits_for_the_save(tmp_path: Path) -> None:
    assert finish(run_python(AT_EXIT, tmp_path)) == "committed 1\ncommitted 2\n"
    for name in ("1", "2"):
        assert len(restore_all(tmp_path / name)) == 200
