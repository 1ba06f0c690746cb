"""The commands ``jaxmeta show`` and ``jaxmeta run``, called in this process."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta as jm
from jaxmeta.__main__ import main
from jaxmeta._proto import meta_graph_pb2
from jaxmeta.command_line import run, show

LEARNING_RATE = 0.1


def train_step(state, batch):
    loss, grads = jax.value_and_grad(
        lambda params: jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)
    )(state["params"])
    params = jax.tree.map(lambda p, g: p - LEARNING_RATE * g, state["params"], grads)
    return {"params": params, "step": state["step"] + 1}, {"loss": loss}


def initial_state():
    return {"params": {"w": jnp.full((3, 1), 0.5)}, "step": jnp.int32(0)}


BATCH = {
    "x": np.arange(12, dtype=np.float32).reshape(4, 3) / 10,
    "y": np.ones((4, 1), np.float32),
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A directory with two checkpoints of a program that has two signatures."""
    path = tmp_path_factory.mktemp("runs")
    graph = jm.Graph()
    state = initial_state()
    variables = graph.variables(state)
    graph.add_signature("train_step", train_step, variables, BATCH, updates=0)
    graph.add_signature("predict", lambda p, x: x @ p["w"], variables["params"], BATCH["x"])
    graph.add_to_collection("hparams", {"rate": 0.1})
    graph.add_to_collection("epochs", 5)
    with jm.Saver(graph) as saver:
        for step in (1, 2):
            saver.save(state, path / "model", global_step=step)
    return path


@pytest.fixture(scope="module")
def tensorflow_file(tmp_path_factory):
    """What TensorFlow 1 wrote: reference variables, ops we may not know, no signatures of ours."""
    proto = meta_graph_pb2.MetaGraphDef()
    proto.meta_info_def.tensorflow_version = "1.4.0"
    graph_def = proto.graph_def
    graph_def.versions.producer = 24
    for name, sizes in (("w", (3, 4)), ("unknown_rank", None), ("partly", (None, 2))):
        node = graph_def.node.add(name=name, op="VariableV2")
        node.attr["dtype"].type = 1
        if sizes is None:
            node.attr["shape"].shape.unknown_rank = True
            continue
        for size in sizes:
            node.attr["shape"].shape.dim.add(size=-1 if size is None else size)
    graph_def.node.add(name="mystery", op="NobodyKnowsThisOp", input=["w", "^partly"])
    variable = meta_graph_pb2.VariableDef(variable_name="w:0").SerializeToString()
    proto.collection_def["trainable_variables"].bytes_list.value.append(variable)
    proto.collection_def["train_op"].node_list.value.append("mystery")
    proto.collection_def["blob"].bytes_list.value.append(b"\xff\x00\x01")
    proto.collection_def["text"].bytes_list.value.append(b"hidden1:32")
    item = proto.collection_def["other"].any_list.value.add()
    item.type_url, item.value = "type.googleapis.com/some.Message", b"1234"
    serving = proto.signature_def["serving_default"]
    serving.method_name = "tensorflow/serving/predict"
    serving.inputs["images"].name, serving.inputs["images"].dtype = "x:0", 1
    serving.inputs["images"].tensor_shape.dim.add(size=-1)
    path = tmp_path_factory.mktemp("tensorflow") / "model.meta"
    path.write_bytes(proto.SerializeToString())
    return path


def output(capsys, *arguments):
    """Runs a command that is to succeed and returns what it printed."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert (code, captured.err) == (0, "")
    return captured.out


def error(capsys, *arguments):
    """Runs a command that is to fail and returns its message."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert code == 2
    assert captured.err.startswith("jaxmeta: error: ")
    assert "Traceback" not in captured.err
    return captured.err


# --- show --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "model-2", "model-2.meta", "model-2/"])
def test_show_takes_a_directory_a_prefix_or_a_file(directory, capsys, name):
    path = f"{directory}/{name}"
    headline = output(capsys, "show", path).splitlines()[0]
    assert f"{directory}/model-2.meta: " in headline


def test_show_prints_every_section(directory, capsys):
    text = output(capsys, "show", directory)
    for line in (
        "  format      jaxmeta 1",
        f"  checkpoint  {directory}/model-2",
        "  train_step  (in a session, run 'train_step/update')",
        "    argument 0   2 variables: params, step; donated; replaced by result 0",
        "    argument 1   feed batch/x  float32[4,3]",
        "                 feed batch/y  float32[4,1]",
        "    result 0     the new argument 0",
        "    result 1     loss  float32[]",
        "  predict  (traced from '<lambda>')",
        "    argument 0   1 variable: params",
        "Variables: 2, 4 elements, 16 B; 3 elements trainable",
        "  params/w  float32[3,1]       12 B  trainable",
        "  step      int32[]             4 B",
        "  epochs                   1 int64     5",
        "  hparams                  1 any       {'rate': 0.1}",
        "  train_op                 1 node      train_step/update",
        "  variables                2 variable  params/w, step",
    ):
        assert line in text.splitlines()
    assert "2 VarHandleOp" in text


def test_show_prints_only_the_sections_that_are_asked_for(directory, capsys):
    text = output(capsys, "show", directory, "--variables", "--ops")
    headers = [line.split(":")[0] for line in text.splitlines() if line and line[0].isupper()]
    assert headers == ["Variables", "Ops"]


def test_show_json_holds_everything(directory, capsys):
    found = json.loads(output(capsys, "show", directory / "model-1", "--json"))
    step = found["signatures"]["train_step"]
    assert step["updates"] == {"0": 0}
    assert [leaf["donated"] for leaf in step["arguments"]["0"]] == [True, True]
    assert [leaf["donated"] for leaf in step["arguments"]["1"]] == [False, False]
    assert step["arguments"]["1"][0] == {
        "path": "x",
        "tensor": "batch/x:0",
        "dtype": "float32",
        "shape": [4, 3],
        "donated": False,
    }
    assert found["variables"][0] == {
        "name": "params/w",
        "dtype": "float32",
        "shape": [3, 1],
        "elements": 3,
        "bytes": 12,
        "trainable": True,
        "key_impl": "",
    }
    assert found["collections"]["hparams"] == {"kind": "any", "items": [{"rate": 0.1}]}
    assert sum(found["ops"].values()) + sum(found["calls"].values()) == (
        found["nodes"] + found["function_nodes"]
    )
    assert set(found["calls"]) <= {f.signature.name for f in _functions(directory)}


def _functions(directory):
    proto = jm.read_meta_graph_file(directory / "model-1.meta")
    return proto.graph_def.library.function


def test_show_needs_no_checkpoint(directory, tmp_path, capsys):
    alone = tmp_path / "alone.meta"
    alone.write_bytes((directory / "model-1.meta").read_bytes())
    assert "  checkpoint  none beside the file" in output(capsys, "show", alone)


def test_show_reads_what_tensorflow_wrote(tensorflow_file, capsys):
    text = output(capsys, "show", tensorflow_file)
    for line in (
        "  format      none, so not written by jaxmeta",
        "  TensorFlow  1.4.0 (GraphDef 24)",
        "  serving_default  (a SignatureDef, method 'tensorflow/serving/predict')",
        "    input  images: x:0  float32[?]",
        "Variables: 3, 12 elements, 48 B; 12 elements trainable",
        "  w             float32[3,4]       48 B  trainable",
        "  unknown_rank  float32[...]          ?",
        "  partly        float32[?,2]          ?",
        "  blob                     1 bytes     <3 bytes>",
        "  other                    1 any       <some.Message, 4 bytes>",
        "  text                     1 bytes     hidden1:32",
        "      3 VariableV2              1 NobodyKnowsThisOp",
    ):
        assert line in text.splitlines()


def test_show_says_why_signatures_cannot_be_read_and_shows_the_rest(directory, tmp_path, capsys):
    proto = jm.read_meta_graph_file(directory / "model-1.meta")
    proto.meta_info_def.meta_graph_version = "jaxmeta 99"
    path = tmp_path / "future.meta"
    path.write_bytes(proto.SerializeToString())
    text = output(capsys, "show", path)
    assert "written in format 99 of jaxmeta" in text
    assert "  step      int32[]             4 B" in text


def test_show_cuts_long_lists_unless_told_otherwise(tmp_path, capsys):
    graph = jm.Graph()
    graph.variables({f"v{i:03}": jnp.zeros(()) for i in range(100)})
    jm.export_meta_graph(tmp_path / "many.meta", graph=graph)
    short = output(capsys, "show", tmp_path / "many.meta", "--variables")
    assert "... and 40 more (--all shows them)" in short
    assert "v099" not in short
    assert "v099" in output(capsys, "show", tmp_path / "many.meta", "--variables", "--all")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no such file"), (b"", "the file is empty"), (b"\xff\xff\xff", "parsed")],
)
def test_show_says_what_is_wrong_with_a_file(tmp_path, capsys, content, message):
    path = tmp_path / "bad.meta"
    if content is not None:
        path.write_bytes(content)
    assert message in error(capsys, "show", path)


def test_show_of_a_directory_without_a_checkpoint_says_so(tmp_path, capsys):
    assert "no directory with a 'checkpoint' file" in error(capsys, "show", tmp_path)


def test_bytes_have_three_digits():
    sizes = [999, 1000, 9994, 99_949, 999_499, 999_500, 2_000_000_000, 5 * 10**12]
    assert [show.format_bytes(size) for size in sizes] == [
        "999 B", "1.00 kB", "9.99 kB", "99.9 kB", "999 kB", "1.00 MB", "2.00 GB", "5.00 TB",
    ]  # fmt: skip


# --- run ---------------------------------------------------------------------------------------


@pytest.fixture
def batch_file(tmp_path):
    np.savez(tmp_path / "batch.npz", x=BATCH["x"], labels=BATCH["y"].astype(np.float64))
    return tmp_path / "batch.npz"


def test_run_trains_on_from_the_checkpoint(directory, batch_file, tmp_path, capsys):
    text = output(
        capsys, "run", directory, "-s", "train_step", "--steps", 3, "--feed", f"x={batch_file}",
        "--feed", f"batch/y={batch_file}:labels", "--out", tmp_path / "out.npz",
        "--save", tmp_path / "more" / "model-3",
    )  # fmt: skip
    state, losses = initial_state(), []
    step = jax.jit(train_step)
    for _ in range(3):
        state, metrics = step(state, BATCH)
        losses.append(metrics["loss"])
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["loss"], np.array(losses))
    saved = jm.load(tmp_path / "more").state
    np.testing.assert_array_equal(saved["params"]["w"], state["params"]["w"])
    assert int(saved["step"]) == 3
    assert [line for line in text.splitlines() if line.startswith("step")] == [
        f"step {i}  loss {loss:.6g}" for i, loss in enumerate(losses, 1)
    ]
    assert int(jm.load(directory).state["step"]) == 0


def test_run_prints_arrays_in_short_and_writes_them_in_full(directory, batch_file, capsys):
    out = batch_file.with_name("out.npz")
    text = output(
        capsys, "run", directory / "model-1.meta", "-s", "predict", "--feed", batch_file,
        "--out", out,
    )  # fmt: skip
    expected = BATCH["x"] @ np.full((3, 1), 0.5, np.float32)
    np.testing.assert_allclose(np.load(out)["result"], expected, rtol=1e-6)
    assert text.startswith(f"result  float32[4,1]  min {expected.min():.6g}  mean ")


def test_run_feeds_all_that_is_not_named(directory, capsys):
    losses = {
        output(capsys, "run", directory, "-s", "train_step", *feeds).splitlines()[0]
        for feeds in (
            ["--feed", "random"],
            ["--feed", "random", "--seed", "1"],
            ["--feed", "zeros"],
            ["--feed", "x=zeros", "--feed", "y=2"],
        )
    }
    assert len(losses) == 4
    assert {"step 1  loss 0", "step 1  loss 4"} <= losses


def test_run_prints_some_of_many_steps(directory, capsys):
    text = output(capsys, "run", directory, "-s", "train_step", "--feed", "zeros", "--steps", 100)
    steps = [line.split()[1] for line in text.splitlines() if line.startswith("step")]
    assert steps == ["1", *(str(step) for step in range(5, 101, 5))]


def test_run_names_what_is_not_fed_and_what_does_not_fit(directory, tmp_path, capsys):
    np.save(tmp_path / "wrong.npy", np.zeros((7, 7), np.float32))
    np.save(tmp_path / "complex.npy", np.zeros((4, 3), np.complex64))
    message = error(
        capsys, "run", directory, "-s", "train_step", "--feed", f"x={tmp_path}/wrong.npy",
        "--feed", "z=zeros",
    )  # fmt: skip
    assert "z: names none of the placeholders" in message
    assert f"batch/x  float32[4,3]: {tmp_path}/wrong.npy has shape [7, 7]" in message
    assert "batch/y  float32[4,1]: is not fed" in message
    message = error(
        capsys, "run", directory, "-s", "predict", "--feed", f"x={tmp_path}/complex.npy"
    )
    assert "complex.npy holds complex64" in message


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.npy", "missing.npy cannot be read: No such file"),
        ("nonsense", "'nonsense' is no source; take zeros, random"),
        ("{file}:other", "has no array 'other'"),
        ("{file}", "has no array 'batch/y'"),
    ],
)
def test_run_says_what_is_wrong_with_a_source(directory, batch_file, capsys, source, message):
    source = source.format(file=batch_file)
    feeds = ["--feed", "x=zeros", "--feed", f"y={source}"]
    assert message in error(capsys, "run", directory, "-s", "train_step", *feeds)


def test_run_asks_for_a_signature_that_exists(directory, tensorflow_file, capsys):
    message = "choose one with --signature; there are: predict, train_step"
    assert message in error(capsys, "run", directory)
    message = "there is no signature 'fit'; there are: predict, train_step"
    assert message in error(capsys, "run", directory, "-s", "fit")


def test_run_says_where_no_checkpoint_is(tmp_path, tensorflow_file, capsys):
    assert str(tmp_path / "nothing") in error(capsys, "run", tmp_path / "nothing")
    assert "NobodyKnowsThisOp" in error(capsys, "run", tensorflow_file)


def test_feeds_take_one_value_a_step_from_an_array_with_one_axis_more(tmp_path):
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.save(tmp_path / "rows.npy", rows)
    placeholder = run.Placeholder("x", (2,), np.dtype("float32"), "")
    feed = run.read_feeds([placeholder], [f"{tmp_path}/rows.npy"], seed=0)["x"]
    np.testing.assert_array_equal([feed(step) for step in range(4)], rows[[0, 1, 2, 0]])


def test_feeds_of_keys_are_keys():
    placeholder = run.Placeholder("key", (2,), np.dtype("uint32"), "threefry2x32")
    key = run.read_feeds([placeholder], ["random"], seed=0)["key"](0)
    assert jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)


def test_of_several_sources_without_a_name_the_first_that_fits_is_taken(batch_file):
    placeholders = [
        run.Placeholder(name, shape, np.dtype("float32"), "")
        for name, shape in (("batch/x", (4, 3)), ("batch/mask", (4,)), ("rest", (None, 2)))
    ]
    feeds = run.read_feeds(placeholders, [str(batch_file), "zeros"], seed=0)
    np.testing.assert_array_equal(feeds["batch/x"](0), BATCH["x"])
    np.testing.assert_array_equal(feeds["batch/mask"](0), np.zeros(4))
    np.testing.assert_array_equal(feeds["rest"](0), np.zeros((1, 2)))


# --- the command -------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["show", "--help"], ["run", "--help"]])
def test_help_ends_in_examples(arguments, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(arguments)
    text = capsys.readouterr().out
    assert "examples:\n  jaxmeta " in text or "for all that is not named" in text
    assert max(map(len, text.splitlines())) <= 100


def test_python_m_jaxmeta_runs_and_a_closed_pipe_is_no_error(directory):
    command = f"{sys.executable} -m jaxmeta show {directory} | head -n 1"
    process = subprocess.run(
        command,
        shell=True,
        capture_output=True,
        text=True,
        cwd=pathlib.Path(jm.__file__).parents[1],
        check=False,
    )
    assert process.stderr == ""
    assert process.stdout.count("\n") == 1
