"""TensorFlow's checkpoints, read and written without it: the same bytes, and nothing is trusted."""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import shutil
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxmeta import dtypes
from jaxmeta._proto import checkpoint_pb2
from jaxmeta.checkpoint import coding, crc32c, orbax, restoring, slices, snappy, table
from jaxmeta.checkpoint.reader import CheckpointReader, open_checkpoint
from jaxmeta.checkpoint.slices import Partitioned
from jaxmeta.checkpoint.tensor_bundle import TensorBundleWriter
from jaxmeta.checkpoint.tensor_bundle_reader import BundleReader
from jaxmeta.errors import CheckpointError

DTYPES = [
    *("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8"),
    *("uint16", "uint32", "uint64", "bool", "complex64", "complex128", "float8_e5m2"),
    *("float8_e4m3fn", "int4", "uint4"),
]


def write_bundle(prefix, arrays):
    with TensorBundleWriter(blocking=True) as writer:
        writer.save(prefix, arrays)
    return os.fspath(prefix)


def random_array(rng, name, shape=(3, 4)):
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    low = 0 if name.startswith(("u", "bool")) else -7
    values = rng.integers(low, 2 if name == "bool" else 8, shape)
    return values.astype(np.complex128 if name.startswith("complex") else np.int64).astype(dtype)


def all_dtypes(rng):
    arrays = {f"v/{name}": random_array(rng, name) for name in DTYPES}
    arrays["text"] = np.array([[b"", b"one"], [b"\xff\x00", b"x" * 300]], dtype=object)
    arrays["scalar"] = np.float32(2.5)
    arrays["empty"] = np.zeros((0, 4), np.int32)
    arrays["empty_text"] = np.zeros((0,), object)
    return arrays


# --- checksums, keys, tables -------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 100_003, (1 << 22) + 5, (1 << 23) + 777])
def test_checksum_is_the_one_made_a_byte_at_a_time(rng, size):
    data = rng.bytes(size)
    expected = crc32c._update(0xFFFFFFFF, memoryview(data)) ^ 0xFFFFFFFF
    assert crc32c.crc32c(data) == expected


def test_checksums_are_those_of_the_rfc():
    # RFC 3720, B.4.
    assert crc32c.crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c.crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c.crc32c(bytes(range(32))) == 0x46DD794E


def test_keys_of_parts_have_the_order_of_names_and_extents(rng):
    numbers = sorted(
        {0, 1, 63, 64, 8191, 8192, -1, 1 << 20, (1 << 62) + 1, *rng.integers(0, 1 << 40, 50)}
    )
    keys = [coding.slice_key("w", [(0, int(number))]) for number in numbers]
    assert keys == sorted(keys)
    names = sorted(["", "a", "a\0", "a\0b", "ab", "b/part_1", "ÿ"], key=str.encode)
    assert [coding.slice_key(name, []) for name in names] == sorted(
        coding.slice_key(name, []) for name in names
    )


def test_table_gives_back_its_entries(rng, tmp_path):
    entries = {
        rng.bytes(int(rng.integers(1, 40))): rng.bytes(int(rng.integers(0, 9000)))
        for _ in range(300)
    }
    (tmp_path / "table").write_bytes(table.write_table(sorted(entries.items())))
    found = table.read_table(tmp_path / "table")
    assert {key: bytes(value) for key, value in found.items()} == entries
    (tmp_path / "none").write_bytes(table.write_table([]))
    assert table.read_table(tmp_path / "none") == {}


def literal(data):
    return bytes([60 << 2, len(data) - 1]) + data


def test_snappy_is_read_with_literals_and_copies():
    packed = coding.write_varint(18) + literal(b"abcd") + bytes([(3 << 2) | 2, 4, 0])
    packed += bytes([1 | (6 << 2), 1])  # the last byte, ten times: a copy that overlaps itself
    assert snappy.decompress(packed) == b"abcdabcd" + b"d" * 10


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        coding.write_varint(1 << 60) + literal(b"abcd"),
        coding.write_varint(9) + literal(b"abcd"),
        coding.write_varint(2) + literal(b"abcd"),
        coding.write_varint(8) + literal(b"abcd") + bytes([(3 << 2) | 2, 9, 0]),
        coding.write_varint(8) + literal(b"abcd") + bytes([(3 << 2) | 2, 0, 0]),
        coding.write_varint(8) + literal(b"abcd") + bytes([(3 << 2) | 3, 0]),
        coding.write_varint(4) + literal(b"abcd")[:-1],
    ],
)
def test_damaged_snappy_is_refused(packed):
    with pytest.raises(CheckpointError):
        snappy.decompress(packed)


def table_of_snappy():
    """Returns a table of one entry, whose block is packed."""
    data = table.write_table([(b"key", b"value")])
    size = int.from_bytes(data[-table.FOOTER_BYTES :][:1], "little")  # where the second block is
    block = data[: size - 5]
    packed = coding.write_varint(len(block)) + literal(block) + b"\1"
    blocks = bytearray(packed + struct.pack("<I", crc32c.masked_crc32c(packed)))
    listed = table._Block(1)
    listed.add(b"l", coding.write_varint(0) + coding.write_varint(len(packed) - 1))
    index = table._append_block(blocks, listed)
    meta = table._append_block(blocks, table._Block(1))
    footer = (meta + index).ljust(table.FOOTER_BYTES - 8, b"\0") + table.MAGIC
    return bytes(blocks) + footer


def test_table_with_a_snappy_block_is_read(tmp_path):
    (tmp_path / "table").write_bytes(table_of_snappy())
    assert {k: bytes(v) for k, v in table.read_table(tmp_path / "table").items()} == {
        b"key": b"value"
    }


# --- bundles -----------------------------------------------------------------------------------


def test_bundle_gives_back_every_dtype(rng, tmp_path):
    arrays = all_dtypes(rng)
    reader = CheckpointReader(write_bundle(tmp_path / "m", arrays))
    assert reader.get_variable_to_shape_map() == {k: list(np.shape(v)) for k, v in arrays.items()}
    for name, array in arrays.items():
        found = reader.get_tensor(name)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


@pytest.mark.needs_tf
def test_bundle_has_the_bytes_that_tensorflow_writes(tensorflow, rng, tmp_path):
    tf = tensorflow
    arrays = all_dtypes(rng)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        names = sorted(arrays)
        tensors = [
            tf.constant(arrays[n], tf.string if arrays[n].dtype == object else None) for n in names
        ]
        session.run(
            tf.raw_ops.SaveV2(
                prefix=str(tmp_path / "theirs"),
                tensor_names=names,
                shape_and_slices=[""] * len(names),
                tensors=tensors,
            )
        )
    write_bundle(tmp_path / "ours", arrays)
    for suffix in (".index", ".data-00000-of-00001"):
        ours, theirs = ((tmp_path / f"{w}{suffix}").read_bytes() for w in ("ours", "theirs"))
        assert ours == theirs, suffix


@pytest.mark.needs_tf
def test_tensorflow_reads_parts_that_we_wrote_and_we_read_those_it_wrote(tensorflow, rng, tmp_path):
    tf = tensorflow
    whole = rng.normal(size=(10, 7)).astype(np.float32)
    blocks = [((0, 4), (0, 7)), ((4, 3), (0, 7)), ((7, 3), (0, 5)), ((7, 3), (5, 2))]
    parts = tuple((block, whole[slices.index_of(block)]) for block in blocks)
    write_bundle(tmp_path / "ours", {"w": Partitioned((10, 7), parts)})
    specs = ["10 7 " + ":".join(f"{s},{n}" for s, n in block) for block in blocks]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        session.run(
            tf.raw_ops.SaveV2(
                prefix=str(tmp_path / "theirs"),
                tensor_names=["w"] * 4,
                shape_and_slices=specs,
                tensors=[p for _, p in parts],
            )
        )
        wanted = ["", "10 7 2,4:1,6", "10 7 -:3,1"]
        read = session.run(
            tf.raw_ops.RestoreV2(
                prefix=str(tmp_path / "ours"),
                tensor_names=["w"] * 3,
                shape_and_slices=wanted,
                dtypes=[tf.float32] * 3,
            )
        )
    for value, expected in zip(read, [whole, whole[2:6, 1:7], whole[:, 3:4]], strict=True):
        np.testing.assert_array_equal(value, expected)
    for suffix in (".index", ".data-00000-of-00001"):
        ours, theirs = ((tmp_path / f"{w}{suffix}").read_bytes() for w in ("ours", "theirs"))
        assert ours == theirs, suffix


@pytest.mark.needs_tf
@pytest.mark.parametrize("sharded", [False, True])
def test_checkpoint_in_the_first_format_is_read(tensorflow, rng, tmp_path, sharded):
    tf = tensorflow.compat.v1
    names = [
        n
        for n in DTYPES
        if not n.startswith(("float8", "bfloat16", "int4", "uint4", "uint3", "uint6"))
    ]
    arrays = {f"v_{n}": random_array(rng, n) for n in names}
    arrays["text"] = np.array([b"a", b"", b"bc"], object)
    whole = rng.normal(size=(10, 3)).astype(np.float32)
    with tensorflow.Graph().as_default(), tf.Session() as session:
        for n, a in arrays.items():
            tf.get_variable(n, initializer=tf.constant(a), use_resource=False)
        tf.get_variable(
            "cut",
            initializer=tf.constant(whole),
            use_resource=False,
            partitioner=tf.fixed_size_partitioner(3),
        )
        session.run(tf.global_variables_initializer())
        saver = tf.train.Saver(write_version=tf.train.SaverDef.V1, sharded=sharded)
        prefix = saver.save(session, str(tmp_path / "model"))
        expected = tf.train.NewCheckpointReader(prefix)
    reader = CheckpointReader(prefix)
    assert set(reader.debug_string().splitlines()) == set(expected.debug_string().splitlines())
    for n in arrays:
        np.testing.assert_array_equal(reader.get_tensor(n), arrays[n])
    np.testing.assert_array_equal(reader.get_tensor("cut"), whole)


# --- restoring ---------------------------------------------------------------------------------


@pytest.fixture(params=["orbax", "bundle"])
def saved(request, rng, tmp_path):
    arrays = {"w": rng.normal(size=(10, 3)).astype(np.float32), "n": np.arange(4)}
    writer = orbax.CheckpointWriter if request.param == "orbax" else TensorBundleWriter
    with writer(blocking=True) as opened:
        opened.save(tmp_path / "m", arrays)
    return tmp_path / "m", arrays


def request(name, array, **changes):
    return restoring.Request(name, changes.pop("shape", array.shape), array.dtype, **changes)


def test_restored_arrays_are_on_devices_and_keep_their_64_bits(saved):
    place, arrays = saved
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), "x")
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    found = restoring.restore(
        place, {"a": request("w", arrays["w"], sharding=sharding), "b": request("n", arrays["n"])}
    )
    assert found["a"].sharding == sharding
    assert found["b"].dtype == np.int64
    np.testing.assert_array_equal(found["a"], arrays["w"])
    np.testing.assert_array_equal(found["b"], arrays["n"])


def test_parts_are_restored_from_a_whole_and_may_have_another_shape(saved):
    place, arrays = saved
    part = slices.parse_slice_spec("10 3 2,5:-")
    wanted = {
        "part": request("w", arrays["w"], shape=(5, 3), part=part),
        "flat": request("n", arrays["n"], shape=(2, 2)),
    }
    found = restoring.restore(place, wanted, reshape=True)
    np.testing.assert_array_equal(found["part"], arrays["w"][2:7])
    np.testing.assert_array_equal(found["flat"], arrays["n"].reshape(2, 2))


def test_everything_that_does_not_fit_is_listed_at_once(saved):
    place, arrays = saved
    wanted = {
        "a": request("w", arrays["w"], shape=(3, 10)),
        "b": restoring.Request("n", (4,), np.dtype(np.float32)),
        "c": request("weights", arrays["w"]),
    }
    with pytest.raises(CheckpointError) as caught:
        restoring.restore(place, wanted)
    message = str(caught.value)
    assert "'w': shape (10, 3) is stored, (3, 10) is asked for" in message
    assert "'n': dtype int64 is stored, float32 is asked for" in message
    assert "'weights' is missing" in message
    with pytest.raises(CheckpointError, match="1 shapes"):
        restoring.restore(place, {"n": request("n", arrays["n"], shape=(5,))}, reshape=True)


# --- damage ------------------------------------------------------------------------------------


def test_missing_checkpoint_is_an_error_that_says_where(tmp_path):
    with pytest.raises(CheckpointError, match="Failed to find any matching files for"):
        CheckpointReader(tmp_path / "nothing")
    (tmp_path / "text").write_text("This is not a checkpoint at all, only a text of some length.")
    with pytest.raises(CheckpointError, match="Unable to open table file"):
        CheckpointReader(tmp_path / "text")


@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
def test_any_flipped_or_missing_byte_is_found(rng, tmp_path, suffix):
    arrays = {"w": rng.normal(size=(5, 3)), "text": np.array([b"one", b"two"], object)}
    prefix = write_bundle(tmp_path / "m", arrays)
    path = pathlib.Path(prefix + suffix)
    content = path.read_bytes()

    def is_refused():
        try:
            reader = CheckpointReader(prefix)
            for name in arrays:
                reader.get_tensor(name)
        except CheckpointError:
            return True
        return False

    assert not is_refused()
    # The unused bytes of the footer carry nothing.
    tail = range(len(content) - 48, len(content) - 8) if suffix == ".index" else range(0)
    for position in range(len(content)):
        if position not in tail:
            damaged = bytearray(content)
            damaged[position] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            assert is_refused(), position
        path.write_bytes(content[:position])
        assert is_refused(), position


def hostile_index(prefix, **changes):
    """Writes an index with valid checksums that says what is not so."""
    entry = checkpoint_pb2.BundleEntryProto(dtype=1, size=12, crc32c=0)
    entry.shape.dim.add(size=3)
    shape = changes.pop("shape", None)
    parts = changes.pop("parts", ())
    shards = changes.pop("num_shards", 1)
    for field, value in changes.items():
        setattr(entry, field, value)
    if shape is not None:
        del entry.shape.dim[:]
        for size in shape:
            entry.shape.dim.add(size=size)
    for part in parts:
        entry.slices.add().CopyFrom(slices.extents_to_proto(part))
    header = checkpoint_pb2.BundleHeaderProto(num_shards=shards)
    content = table.write_table(
        [(b"", header.SerializeToString()), (b"w", entry.SerializeToString())]
    )
    pathlib.Path(f"{prefix}.index").write_bytes(content)
    pathlib.Path(f"{prefix}.data-00000-of-00001").write_bytes(bytes(12))


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [1 << 62]},
        {"shape": [1 << 40, 1 << 40]},
        {"shape": [-3]},
        {"shape": [1 << 40], "dtype": dtypes.STRING},
        {"shape": [1 << 50], "size": 4 << 50},
        {"offset": 1 << 60},
        {"offset": -4},
        {"size": -12, "shape": [-3]},
        {"shard_id": 7},
        {"shard_id": -1},
        {"num_shards": 0},
        {"num_shards": -1},
        {"num_shards": 2_000_000_000, "shard_id": 1_999_999_999},
        {"dtype": 20},
        {"dtype": 99},
        {"parts": [((0, 9),)]},
        {"parts": [((-1, 2),)]},
        {"parts": [((0, 3), (0, 1))]},
        {"shape": [1 << 40], "parts": [((0, 1 << 40),)]},
        {"shape": [3], "parts": [((0, 2),)]},
    ],
    ids=str,
)
def test_index_that_lies_is_refused_without_taking_memory(tmp_path, changes):
    hostile_index(tmp_path / "m", **changes)
    with pytest.raises(CheckpointError):
        CheckpointReader(tmp_path / "m").get_tensor("w")


def test_random_entries_with_valid_checksums_never_crash_the_reader(tmp_path):
    generator = random.Random(3)
    block = ((0, 2),), np.zeros(2)
    arrays = {f"v{i}": np.arange(i) for i in range(5)} | {"cut": Partitioned((2,), (block,))}
    prefix = write_bundle(tmp_path / "m", arrays | {"text": np.array([b"a", b"bc"], object)})
    entries = {key: bytes(v) for key, v in table.read_table(prefix + ".index").items()}
    for _ in range(300):
        damaged = {key: bytearray(value) for key, value in entries.items()}
        for _ in range(generator.randrange(1, 4)):
            value = damaged[generator.choice(list(entries))]
            value[generator.randrange(len(value))] = generator.randrange(256)
        content = table.write_table([(key, bytes(value)) for key, value in damaged.items()])
        pathlib.Path(prefix + ".index").write_bytes(content)
        with contextlib.suppress(CheckpointError):
            reader = CheckpointReader(prefix)
            for name in reader.get_variable_to_shape_map():
                with contextlib.suppress(CheckpointError):
                    reader.get_tensor(name)


def test_values_that_cannot_be_stored_are_all_named(tmp_path):
    donated = jnp.ones(2)
    donated.delete()
    bad = {"gone": donated, "list": [1], "mixed": np.array([b"a", 3], object)}
    with pytest.raises(CheckpointError) as caught:
        write_bundle(tmp_path / "m", bad)
    for name in bad:
        assert repr(name) in str(caught.value)
    assert not os.listdir(tmp_path)


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros(100_000)
    with TensorBundleWriter() as writer:
        writer.save(tmp_path / "m", {"x": x})
        for _ in range(5):
            x = step(x)
    assert not BundleReader(tmp_path / "m").read("x").any()


def test_bundle_over_a_bundle_never_touches_the_old_data_before_the_new_index(tmp_path):
    prefix = write_bundle(tmp_path / "m", {"w": np.zeros(4)})
    shutil.copytree(tmp_path, tmp_path / "copy")
    write_bundle(prefix, {"w": np.ones(4)})
    os.replace(tmp_path / "copy" / "m.index", prefix + ".index")
    with pytest.raises(CheckpointError, match="No such file"):  # the old data, not wrong data
        CheckpointReader(prefix).get_tensor("w")
    write_bundle(tmp_path / "n", {"w": np.zeros(4)})
    for number in range(3):
        write_bundle(tmp_path / "n", {"w": np.full(4, number)})
        np.testing.assert_array_equal(open_checkpoint(tmp_path / "n").read("w"), number)
