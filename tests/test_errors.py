"""Clear errors: which exception, and its whole message, for what goes wrong in users' hands."""

from __future__ import annotations

import collections
import contextlib
import inspect
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from google.protobuf import text_format
from jax.extend.core import Primitive

import jaxmeta
from jaxmeta import errors
from jaxmeta._proto import meta_graph_pb2
from jaxmeta.meta_graphs import meta_graph
from jaxmeta.ops._not_lowered import NOT_LOWERED

BATCH = {"x": np.ones((4, 3), np.float32), "y": np.ones((4, 2), np.float32)}
FEEDS = {"batch/x:0": BATCH["x"], "batch/y:0": BATCH["y"]}
CALL_ADVICE = "Pass what the signature was traced with; `jaxmeta show` lists it."


def make_state() -> Any:
    return {"params": {"w": jnp.ones((3, 2))}, "step": jnp.zeros((), jnp.int32)}


def train_step(state, batch):
    def loss(params):
        return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)

    value, gradient = jax.value_and_grad(loss)(state["params"])
    params = jax.tree.map(lambda p, g: p - 0.1 * g, state["params"], gradient)
    return {"params": params, "step": state["step"] + 1}, {"loss": value}


def make_graph() -> jaxmeta.Graph:
    graph = jaxmeta.Graph()
    variables = graph.variables(make_state())
    graph.add_signature("train_step", train_step, variables, BATCH, updates=0)
    graph.add_signature("predict", lambda p, x: x @ p["w"], variables["params"], BATCH["x"])
    return graph


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """The prefix of a checkpoint at step 3."""
    with jaxmeta.Saver(make_graph()) as saver:
        directory = tmp_path_factory.mktemp("errors")
        return saver.save(make_state(), directory / "model", global_step=3)


@pytest.fixture(scope="module")
def content(checkpoint) -> bytes:
    """The bytes of the checkpoint's meta graph."""
    with open(f"{checkpoint}.meta", "rb") as file:
        return file.read()


@pytest.fixture
def session():
    with jaxmeta.Session(make_graph()) as session:
        session.set_state(make_state())
        yield session


@contextlib.contextmanager
def raises(exception: type[Exception], *lines: str):
    """Expects an exception of exactly this type whose whole message is these lines."""
    with pytest.raises(exception) as caught:
        yield
    assert type(caught.value) is exception
    assert str(caught.value) == "\n".join(lines)


# --- the exceptions ----------------------------------------------------------------------------


def test_exceptions_are_the_tree_that_the_docstring_draws():
    drawn = dict(re.findall(r"[├└]─ (\w+)\((\w+)\)", errors.__doc__))
    defined = {
        name: cls.__bases__[1].__name__
        for name, cls in vars(errors).items()
        if inspect.isclass(cls) and issubclass(cls, errors.JaxmetaError)
        if cls is not errors.JaxmetaError
    }
    assert drawn == defined
    for name in defined:
        assert issubclass(getattr(errors, name).__bases__[0], errors.JaxmetaError)
        assert getattr(jaxmeta, name) is getattr(errors, name)


def test_list_of_offenders_shows_ten_and_counts_the_rest():
    message = errors.list_offenders("bad:", [f"x{i}" for i in range(12)], "Do this.")
    shown = [f"  x{i}" for i in range(10)]
    assert message.splitlines() == ["bad:", *shown, "  ... and 2 more", "Do this."]


# --- files -------------------------------------------------------------------------------------


def test_missing_file(tmp_path):
    path = tmp_path / "model.meta"
    with raises(errors.UnreadableFileError, f"{path}: there is no such file"):
        jaxmeta.read_meta_graph_file(path)


def test_directory_in_place_of_a_file(tmp_path):
    with raises(
        errors.UnreadableFileError,
        f"{tmp_path}: cannot be read: [Errno 21] Is a directory: '{tmp_path}'",
    ):
        jaxmeta.read_meta_graph_file(tmp_path)


def test_empty_file(tmp_path):
    path = tmp_path / "model.meta"
    path.touch()
    with raises(errors.UnreadableFileError, f"{path}: the file is empty"):
        jaxmeta.read_meta_graph_file(path)


@pytest.mark.parametrize("twentieth", range(1, 20))
def test_truncated_file(tmp_path, content, twentieth):
    path = tmp_path / "model.meta"
    path.write_bytes(content[: len(content) * twentieth // 20])
    with pytest.raises(errors.FormatError) as caught:
        jaxmeta.import_meta_graph(path)
    assert re.fullmatch(
        rf"{re.escape(str(path))}: cannot be parsed \(.+\); "
        "it is truncated or corrupt, or no MetaGraphDef",
        str(caught.value),
    )


def field_ends(content: bytes) -> list[int]:
    """Returns where the top-level fields of a serialized message end, but for the last one."""
    ends, position = [], 0
    while position < len(content):
        assert content[position] & 7 == 2, "a field that has no length"
        position, length, shift = position + 1, 0, 0
        while True:
            byte = content[position]
            length |= (byte & 0x7F) << shift
            position, shift = position + 1, shift + 7
            if byte < 0x80:
                break
        position += length
        ends.append(position)
    return ends[:-1]


def test_file_truncated_between_two_fields_does_not_pass_for_a_whole_one(tmp_path, content):
    path = tmp_path / "model.meta"
    passed = []
    for end in field_ends(content):
        path.write_bytes(content[:end])
        with contextlib.suppress(errors.FormatError):
            meta_graph.import_graph(path)
            passed.append(end)
    assert passed == []


def test_truncated_text_file(tmp_path, checkpoint):
    path = tmp_path / "model.pbtxt"
    text = text_format.MessageToString(jaxmeta.read_meta_graph_file(f"{checkpoint}.meta"))
    path.write_text(text[: len(text) // 2])
    with pytest.raises(errors.FormatError) as caught:
        jaxmeta.import_meta_graph(path)
    assert re.fullmatch(
        rf"{re.escape(str(path))}: cannot be parsed: .+; "
        "it is truncated or corrupt, or no MetaGraphDef",
        str(caught.value),
    )


REFUSALS = (
    errors.FormatError,
    errors.GraphError,
    errors.AttrError,
    errors.UnsupportedOpError,
)


def flip_bits(content: bytes, rng: np.random.Generator, count: int):
    for position, bit in zip(
        rng.integers(0, len(content), count), rng.integers(0, 8, count), strict=True
    ):
        flipped = bytearray(content)
        flipped[position] ^= 1 << bit
        yield int(position), int(bit), bytes(flipped)


def test_flipped_bits_are_refused_clearly_or_do_no_harm(tmp_path, content, rng):
    path = tmp_path / "model.meta"
    strange = []
    for position, bit, flipped in flip_bits(content, rng, 200):
        path.write_bytes(flipped)
        try:
            meta_graph.import_graph(path)
        except REFUSALS:
            continue
        except Exception as error:
            strange.append(f"byte {position}, bit {bit}: {error!r}")
    assert strange == []


def test_flipped_bits_in_text_are_refused_clearly_or_do_no_harm(tmp_path, checkpoint, rng):
    path = tmp_path / "model.pbtxt"
    message = jaxmeta.read_meta_graph_file(f"{checkpoint}.meta")
    text = text_format.MessageToString(message).encode()
    strange = []
    for position, bit, flipped in flip_bits(text, rng, 30):
        path.write_bytes(flipped)
        try:
            meta_graph.import_graph(path)
        except REFUSALS:
            continue
        except Exception as error:
            strange.append(f"byte {position}, bit {bit}: {error!r}")
    assert strange == []


@pytest.mark.parametrize("version", ["2", "12", "x", ""])
def test_file_of_a_future_format(tmp_path, content, version):
    path = tmp_path / "model.meta"
    proto = meta_graph_pb2.MetaGraphDef.FromString(content)
    proto.meta_info_def.meta_graph_version = f"jaxmeta {version}"
    path.write_bytes(proto.SerializeToString())
    with raises(
        errors.FormatError,
        f"{path}: written in format {version} of jaxmeta; this version reads up to "
        f"{meta_graph.FORMAT_VERSION}. Upgrade jaxmeta.",
    ):
        jaxmeta.import_meta_graph(path)


def test_file_that_needs_a_newer_reader_of_graphs(tmp_path, content):
    path = tmp_path / "model.meta"
    proto = meta_graph_pb2.MetaGraphDef.FromString(content)
    proto.graph_def.versions.min_consumer = 9999
    path.write_bytes(proto.SerializeToString())
    with raises(
        errors.FormatError,
        f"{path}: needs a reader of GraphDef version 9999; this one is 2474. Upgrade jaxmeta.",
    ):
        jaxmeta.import_meta_graph(path)


# --- graphs ------------------------------------------------------------------------------------


def test_all_unknown_ops_of_graph_and_functions_are_named(tmp_path):
    path = tmp_path / "model.meta"
    proto = meta_graph_pb2.MetaGraphDef()
    nodes = proto.graph_def.node
    nodes.add(name="x", op="Placeholder")
    nodes.add(name="y", op="FancyGelu", input=["x"])
    nodes.add(name="z", op="MyCustomOp", input=["x"])
    function = proto.graph_def.library.function.add()
    function.signature.name = "body"
    function.node_def.add(name="deep", op="Unheard")
    path.write_bytes(proto.SerializeToString())
    with raises(
        errors.UnsupportedOpError,
        f"{path}: these ops are unknown, and the file does not describe them:",
        "  FancyGelu  (node 'y')",
        "  MyCustomOp  (node 'z')",
        "  Unheard  (node 'deep' of function 'body')",
    ):
        jaxmeta.import_meta_graph(path)


def test_all_inputs_that_name_no_node_are_named(tmp_path):
    path = tmp_path / "model.meta"
    proto = meta_graph_pb2.MetaGraphDef()
    proto.graph_def.node.add(name="a", op="NoOp", input=["^lost"])
    proto.graph_def.node.add(name="b", op="Tanh", input=["gone:1"])
    path.write_bytes(proto.SerializeToString())
    with raises(
        errors.GraphError,
        f"{path}: these inputs name no node of the graph:",
        "  'a' (NoOp): '^lost'",
        "  'b' (Tanh): 'gone:1'",
    ):
        jaxmeta.import_meta_graph(path)


def test_all_node_names_that_are_not_unique_are_named():
    proto = meta_graph_pb2.MetaGraphDef()
    for name in ("a", "b", "a", "b", "c"):
        proto.graph_def.node.add(name=name, op="NoOp")
    with raises(errors.GraphError, "these nodes are not unique:", "  a", "  b"):
        meta_graph.import_graph(proto)


def test_ops_without_a_kernel_are_named_where_they_are_fetched():
    graph = jaxmeta.Graph()
    name = graph.add_node("Placeholder", [], {"dtype": np.dtype(object)}, "name")
    content = graph.add_node("DecodeJSONExample", name, {}, "content")
    graph.add_node("DecodeJSONExample", content, {}, "again")
    with (
        jaxmeta.Session(graph) as session,
        raises(
            errors.UnsupportedOpError,
            "these ops have no kernel, and are not functions of the graph's library:",
            "  DecodeJSONExample  (node 'content')",
            "  DecodeJSONExample  (node 'again')",
            "Feed their outputs, or fetch what does not depend on them.",
        ),
    ):
        session.run("again", {"name:0": b"{}"})


# --- primitives --------------------------------------------------------------------------------


def made_up(name: str) -> Primitive:
    primitive = Primitive(name)
    primitive.def_abstract_eval(lambda x: x)
    return primitive


first_p, second_p = made_up("made_up_first"), made_up("made_up_second")


def with_made_up_primitives(x):
    with jax.named_scope("model"):
        y = first_p.bind(x)
        with jax.named_scope("head"):
            y = second_p.bind(y)

    def cell(carry, _):
        with jax.named_scope("cell"):
            return second_p.bind(carry), None

    y, _ = jax.lax.scan(cell, y, length=3)
    return jax.jit(lambda z: first_p.bind(z))(y)


def test_all_primitives_without_a_node_form_are_named_with_line_and_scope():
    source, start = inspect.getsourcelines(with_made_up_primitives)
    lines = [f"{__file__}:{start + i}" for i, text in enumerate(source) if ".bind(" in text]
    with raises(
        errors.UnsupportedPrimitiveError,
        "cannot trace 'step': 4 uses of primitives without a node form",
        f"  made_up_first  {lines[0]}  (scope 'model')  it has no node form",
        f"  made_up_second  {lines[1]}  (scope 'model/head')  it has no node form",
        f"  made_up_second  {lines[2]}  (scope 'cell')  it has no node form",
        f"  made_up_first  {lines[3]}  it has no node form",
        "Replace them in the traced function; the primitives that have a node form are listed in "
        "docs/ops.md.",
    ):
        jaxmeta.Graph().add_signature("step", with_made_up_primitives, jnp.ones(3))


def test_failed_trace_leaves_the_graph_as_it_was():
    graph = make_graph()
    table = jnp.arange(1000.0)  # large enough to become a variable
    before = [*graph.nodes, *graph.functions, *graph.variable_names]
    with pytest.raises(errors.UnsupportedPrimitiveError):
        graph.add_signature("step", lambda x: first_p.bind(x) + table, jnp.ones(1000))
    assert [*graph.nodes, *graph.functions, *graph.variable_names] == before
    assert graph.constants == {}


@pytest.mark.parametrize(
    "callback",
    [
        lambda x: jax.debug.print("{}", x),
        lambda x: jax.debug.callback(print, x),
        lambda x: jax.pure_callback(np.sin, x, x),
        lambda x: jax.experimental.io_callback(np.sin, x, x),
    ],
    ids=["print", "callback", "pure_callback", "io_callback"],
)
def test_callbacks_into_python_are_refused_with_line_and_reason(callback):
    line = f"{__file__}:{callback.__code__.co_firstlineno}"
    with pytest.raises(errors.UnsupportedPrimitiveError) as caught:
        jaxmeta.Graph().add_signature("step", lambda x: (callback(x), x), jnp.ones(3))
    headline, offender, _ = str(caught.value).splitlines()
    assert headline == "cannot trace 'step': 1 use of primitives without a node form"
    primitive = offender.split()[0]
    assert offender == f"  {primitive}  {line}  {NOT_LOWERED[primitive]}"


# --- checkpoints -------------------------------------------------------------------------------


def test_nothing_to_load():
    with raises(
        errors.CheckpointError,
        "there is no checkpoint to load: latest_checkpoint() found none. Is the directory right, "
        "and did a save finish?",
    ):
        jaxmeta.load(None)


def test_latest_checkpoint_of_a_directory_without_one(tmp_path):
    assert jaxmeta.latest_checkpoint(tmp_path) is None


def test_load_of_a_checkpoint_that_is_not_there(checkpoint):
    path = checkpoint.removesuffix("3") + "4"
    with raises(errors.CheckpointError, f"no checkpoint at {path}; close: model-3, model-3.meta"):
        jaxmeta.load(path)


def test_restore_of_a_checkpoint_that_is_not_there(checkpoint, session):
    path = checkpoint.removesuffix("3") + "4"
    headline = f"The passed save_path is not a valid checkpoint: {path}"
    with raises(errors.CheckpointError, f"{headline}; close: model-3, model-3.meta"):
        jaxmeta.Saver(session.graph).restore(session, path)


def test_load_where_the_latest_checkpoint_was_deleted(tmp_path):
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model-7"\n')
    with raises(errors.CheckpointError, f"{tmp_path}: its 'checkpoint' file names no checkpoint"):
        jaxmeta.load(tmp_path)


def test_graph_is_missing_beside_its_checkpoint(tmp_path):
    with jaxmeta.Saver(make_graph()) as saver:
        prefix = saver.save(make_state(), tmp_path / "model", write_meta_graph=False)
    with raises(errors.UnreadableFileError, f"{prefix}.meta: there is no such file"):
        jaxmeta.load(prefix)


def test_all_differences_of_checkpoint_and_graph_are_named(checkpoint):
    graph = jaxmeta.Graph()
    graph.variables(
        {
            "params": {"w": jnp.ones((2, 3)), "b": jnp.ones(2), "scale": jnp.ones(2)},
            "step": jnp.zeros(()),
        }
    )
    with (
        jaxmeta.Session(graph) as session,
        raises(
            errors.CheckpointError,
            f"checkpoint {checkpoint} does not fit: 2 names missing, 1 shapes and 1 dtypes "
            "different",
            "  'params/b' is missing; close: params/w",
            "  'params/scale' is missing; close: params/w",
            "  'params/w': shape (3, 2) is stored, (2, 3) is asked for",
            "  'step': dtype int32 is stored, float32 is asked for",
            "Restore the checkpoint that was saved with this program, or ask for what this one "
            "has: read_specs lists it.",
        ),
    ):
        jaxmeta.Saver(graph).restore(session, checkpoint)


OTHER_STRUCTURE = {"params": {"v": np.ones((3, 2), np.float32)}, "step": np.int32(0), "new": 1}
OTHER_STRUCTURE_MESSAGE = (
    "the state is not the one the graph's variables were made from:",
    "  missing: ['params']['w']",
    "  not expected: ['new']",
    "  not expected: ['params']['v']",
)
OTHER_ARRAYS = {"params": {"w": np.ones((2, 3), np.float32)}, "step": np.float32(0)}
OTHER_ARRAYS_MESSAGE = (
    "these values do not fit the graph's variables:",
    "  params/w: expected float32[3, 2], got float32[2, 3]",
    "  step: expected int32[], got float32[]",
)


def test_save_of_a_state_with_another_structure(tmp_path):
    with (
        jaxmeta.Saver(make_graph()) as saver,
        raises(errors.CheckpointError, *OTHER_STRUCTURE_MESSAGE),
    ):
        saver.save(OTHER_STRUCTURE, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_save_of_a_state_with_other_shapes_and_dtypes(tmp_path):
    with (
        jaxmeta.Saver(make_graph()) as saver,
        raises(errors.CheckpointError, *OTHER_ARRAYS_MESSAGE),
    ):
        saver.save(OTHER_ARRAYS, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_session_given_a_state_with_another_structure(session):
    with raises(errors.CheckpointError, *OTHER_STRUCTURE_MESSAGE):
        session.set_state(OTHER_STRUCTURE)


def test_session_given_a_state_with_other_shapes_and_dtypes(session):
    with raises(errors.CheckpointError, *OTHER_ARRAYS_MESSAGE):
        session.set_state(OTHER_ARRAYS)


def test_save_of_a_session_that_has_no_values(tmp_path):
    graph = make_graph()
    with (
        jaxmeta.Session(graph) as session,
        jaxmeta.Saver(graph) as saver,
        raises(
            errors.CheckpointError,
            "these variables have no value to save:",
            "  params/w",
            "  step",
        ),
    ):
        saver.save(session, tmp_path / "model")


def test_template_of_a_state_with_other_leaves(checkpoint):
    program = jaxmeta.load(checkpoint)
    with raises(
        errors.CheckpointError,
        "the template's leaves are not the state's:",
        "  missing in the template: ['params']['w']",
        "  only in the template: ['params']['v']",
    ):
        program.state_like({"params": {"v": 0}, "step": 0})


def test_state_file_name_with_a_path(tmp_path):
    with (
        jaxmeta.Saver(make_graph()) as saver,
        raises(errors.CheckpointError, "'latest_filename' must not contain path components"),
    ):
        saver.save(make_state(), tmp_path / "model", latest_filename="a/checkpoint")


# --- feeds and fetches -------------------------------------------------------------------------


def test_all_unknown_feeds_are_named(session):
    with raises(
        errors.FeedTypeError,
        "these feeds do not fit:",
        "  the graph has no node named 'batch/z'",
        "  'batch/y' is not a tensor's name; these end in ':0', ':1', ...",
        "  'batch/x:1': the operation has 1 outputs",
    ):
        session.run("train_step:0", {"batch/z:0": 1, "batch/y": 1, "batch/x:1": 1})


def test_all_feeds_of_other_shape_or_dtype_are_named(session):
    with raises(
        errors.FeedError,
        "these feeds do not fit:",
        "  batch/x:0: expected shape [4, 3], got [4, 2]",
        "  batch/y:0: expected dtype float32, got bool",
    ):
        session.run("train_step:0", {"batch/x:0": BATCH["y"], "batch/y:0": np.ones((4, 2), bool)})


def test_feed_of_another_shape_is_named_after_a_good_run(session):
    session.run("train_step:0", FEEDS)
    with raises(
        errors.FeedError,
        "these feeds do not fit:",
        "  batch/x:0: expected shape [4, 3], got [5, 3]",
    ):
        session.run("train_step:0", {**FEEDS, "batch/x:0": np.ones((5, 3), np.float32)})


def test_feed_that_cannot_become_numbers_is_named(session):
    with raises(
        errors.FeedError, "these feeds do not fit:", "  x:0: expected dtype float32, got string"
    ):
        session.run("predict:0", {"x:0": [["a", "b", "c"]] * 4})


def test_all_missing_feeds_are_named(session):
    with pytest.raises(errors.FeedError) as caught:
        session.run("train_step:0")
    assert "batch/x" in str(caught.value)
    assert "batch/y" in str(caught.value)


def test_missing_feed(session):
    with raises(errors.FeedError, "these placeholders must be fed a value:\n  batch/y"):
        session.run("train_step:0", {"batch/x:0": BATCH["x"]})


def test_unknown_fetch(session):
    with raises(errors.MissingNameError, "the graph has no node named 'nope'"):
        session.run("nope:0", FEEDS)


def test_fetch_that_is_no_name(session):
    with raises(
        errors.FeedTypeError,
        "cannot fetch 3.0 (float); expected a tensor, an operation, a variable, a name, or a list, "
        "tuple, dict or dataclass of these",
    ):
        session.run([3.0])


def test_variable_without_a_value():
    with (
        jaxmeta.Session(make_graph()) as session,
        raises(
            errors.GraphError,
            "the variable 'params/w' has no value: restore a checkpoint or run its initializer",
        ),
    ):
        session.run("predict:0", {"x:0": BATCH["x"]})


# --- arguments of signatures -------------------------------------------------------------------


def test_unknown_signature(checkpoint):
    with raises(errors.GraphError, "there is no signature 'nope'; there are: predict, train_step"):
        jaxmeta.load(checkpoint)["nope"]


def test_signature_given_another_structure(checkpoint):
    program = jaxmeta.load(checkpoint)
    state = {"params": {"v": jnp.ones((3, 2))}, "step": jnp.zeros((), jnp.int32)}
    with raises(
        errors.FeedError,
        "signature 'train_step' was given other arguments:",
        "  missing: [0][0]['params']['w']",
        "  missing: [0][1]['y']",
        "  not expected: [0][0]['params']['v']",
        CALL_ADVICE,
    ):
        program["train_step"](state, {"x": BATCH["x"]})


def test_signature_given_too_few_arguments(checkpoint):
    program = jaxmeta.load(checkpoint)
    with raises(
        errors.FeedError,
        "signature 'train_step' was given other arguments:",
        "  missing: [0][1]['x']",
        "  missing: [0][1]['y']",
        CALL_ADVICE,
    ):
        program["train_step"](program.state)


def test_signature_given_other_shapes_and_dtypes(checkpoint):
    program = jaxmeta.load(checkpoint)
    batch = {"x": BATCH["x"], "y": BATCH["y"].astype(np.int32)}
    with raises(
        errors.FeedError,
        "signature 'train_step' was given other arrays:",
        "  params/w: expected float32[3, 2], got float32[2, 3]",
        "  step: expected int32[], got float32[]",
        "  batch/y:0: expected float32[4, 2], got int32[4, 2]",
        CALL_ADVICE,
    ):
        program["train_step"](jax.tree.map(jnp.asarray, OTHER_ARRAYS), batch)


# --- building ----------------------------------------------------------------------------------


def test_signature_name_that_is_taken():
    with raises(errors.GraphError, "the graph has a signature named 'predict' already"):
        make_graph().add_signature("predict", lambda x: x, jnp.ones(3))


def test_all_results_that_cannot_be_assigned_back_are_named():
    graph = jaxmeta.Graph()
    variables = graph.variables(make_state())
    with raises(
        errors.GraphError,
        "signature 'step': results cannot be assigned back:",
        "  params/w is float32[3, 2], its new value bfloat16[3, 2]",
        "  step is int32[], its new value int32[1]",
        "The result must have the argument's structure, shapes and dtypes.",
    ):
        graph.add_signature(
            "step",
            lambda s: {
                "params": {"w": s["params"]["w"].astype(jnp.bfloat16)},
                "step": s["step"][None],
            },
            variables,
            updates=0,
        )


def test_results_under_other_paths_are_not_assigned_back():
    graph = jaxmeta.Graph()
    variables = graph.variables({"a": jnp.ones(3), "b": jnp.zeros(3)})
    with raises(
        errors.GraphError,
        "signature 'step': results cannot be assigned back:",
        "  not in the result: a",
        "  not in the result: b",
        "  only in the result: 0",
        "  only in the result: 1",
        "The result must have the argument's structure, shapes and dtypes.",
    ):
        graph.add_signature("step", lambda s: ((s["b"], s["a"]), 0.0), variables, updates=0)


def test_a_state_that_is_a_tuple_is_one_result_among_several():
    graph = jaxmeta.Graph()
    variables = graph.variables(({"a": jnp.ones(3)}, jnp.zeros(3)))
    with raises(
        errors.GraphError,
        "signature 'step': results cannot be assigned back:",
        "  not in the result: 0/a",
        "  not in the result: 1",
        "  only in the result: a",
        "The result must have the argument's structure, shapes and dtypes. All results together "
        "have: return (state,), for a tuple counts as several.",
    ):
        graph.add_signature("step", lambda s: s, variables, updates=0)
    graph.add_signature("step", lambda s: (s,), variables, updates=0)


def test_update_of_an_argument_that_is_no_variable():
    with raises(
        errors.GraphError,
        "signature 'step': results cannot be assigned back:",
        "  x:0 is not a variable",
        "The result must have the argument's structure, shapes and dtypes.",
    ):
        jaxmeta.Graph().add_signature("step", lambda x: x, jnp.ones(3), updates=0)


def test_all_leaves_of_a_state_that_are_no_arrays_are_named():
    with raises(
        errors.GraphError,
        "the state holds leaves that are not arrays:",
        "  act: function make_state",
        "  name: str 'mlp'",
        "  queue: deque, a class that is no pytree to JAX",
        "  step: the number 1099511627776 is beyond int32",
        "  words: an array of <U1, a type that JAX has not",
        "Split off what is no array: params, static = equinox.partition(model, equinox.is_array); "
        "graphdef, state = flax.nnx.split(model). Or mark the fields static: "
        "equinox.field(static=True), flax.struct.field(pytree_node=False), meta_fields of "
        "jax.tree_util.register_dataclass.",
        "Register the class of a container with jax.tree_util, or use dict, list, tuple or "
        "NamedTuple.",
        'Switch 64-bit types on, jax.config.update("jax_enable_x64", True), or use smaller '
        "numbers.",
    ):
        state = {"name": "mlp", "act": make_state, "w": jnp.ones(3), "step": 1 << 40}
        state.update(words=np.array(["a"]), queue=collections.deque())
        jaxmeta.Graph().variables(state)


def test_collection_of_things_that_no_file_can_hold():
    graph = jaxmeta.Graph()
    graph.add_to_collection("things", 1)
    graph.add_to_collection("things", object())
    with raises(
        errors.AttrError,
        "collection 'things' holds int, object; a collection holds variables, tensors and "
        "operations, or strings, or ints, or floats, or trees of these",
    ):
        jaxmeta.export_meta_graph(graph=graph)
