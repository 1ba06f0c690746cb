"""Train operations: optax as oracle, TensorFlow as the other engine, save and resume."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta as jm
from jaxmeta import errors

optax = pytest.importorskip("optax")

STEPS = 4


def initial_params(rng):
    return {
        "hidden/b": np.zeros(4, np.float32),
        "hidden/w": rng.normal(size=(3, 4)).astype(np.float32),
        "out/w": rng.normal(size=(4, 2)).astype(np.float32),
    }


def loss_of(params, x, y):
    hidden = jax.nn.relu(x @ params["hidden/w"] + params["hidden/b"])
    return jnp.mean((hidden @ params["out/w"] - y) ** 2)


def batches(rng):
    return [
        (rng.normal(size=(8, 3)).astype(np.float32), rng.normal(size=(8, 2)).astype(np.float32))
        for _ in range(STEPS)
    ]


def build(params, transformation):
    """Builds the net piece by piece; returns the loss, the train operation and the step count."""
    x = jm.placeholder("float32", [8, 3], name="x")
    y = jm.placeholder("float32", [8, 2], name="y")
    with jm.name_scope("hidden"):
        w = jm.Variable(params["hidden/w"], name="w")
        b = jm.Variable(params["hidden/b"], name="b")
        hidden = jm.call(lambda x, w, b: jax.nn.relu(x @ w + b), x, w, b)
    with jm.name_scope("out"):
        logits = hidden @ jm.Variable(params["out/w"], name="w")
    loss = jm.call(lambda a, b: jnp.mean((a - b) ** 2), logits, y, name="loss")
    step = jm.Variable(0, trainable=False, name="global_step")
    return loss, jm.minimize(loss, transformation, global_step=step), step


def trained_by_optax(params, transformation, data):
    """Returns the losses and parameters of a plain loop."""
    state, losses = transformation.init(params), []
    for x, y in data:
        loss, grads = jax.value_and_grad(loss_of)(params, x, y)
        updates, state = transformation.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    return losses, params


TRANSFORMATIONS = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.05, momentum=0.9, nesterov=True),
    "adamw": lambda: optax.adamw(optax.cosine_decay_schedule(0.02, 10), weight_decay=0.01),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.1), optax.rmsprop(0.01)),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.01),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_training_is_that_of_optax(rng, name):
    params, data = initial_params(rng), batches(rng)
    expected, final = trained_by_optax(params, TRANSFORMATIONS[name](), data)
    loss, train_op, step = build(params, TRANSFORMATIONS[name]())
    with jm.Session() as session:
        session.run(jm.global_variables_initializer())
        found = [float(session.run([loss, train_op], {"x:0": x, "y:0": y})[0]) for x, y in data]
        values = {name: session.run(f"{name}:0") for name in params}
        assert int(session.run(step)) == STEPS
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for key, value in values.items():
        np.testing.assert_allclose(value, final[key], rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.needs_tf
@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_tensorflow_trains_what_was_built(tensorflow, rng, tmp_path, name):
    tf = tensorflow.compat.v1
    params, data = initial_params(rng), batches(rng)
    expected, _ = trained_by_optax(params, TRANSFORMATIONS[name](), data)
    build(params, TRANSFORMATIONS[name]())
    jm.global_variables_initializer()
    path = str(tmp_path / "built.meta")
    jm.Saver().export_meta_graph(path)
    with tf.Graph().as_default(), tf.Session() as session:
        saver = tf.train.import_meta_graph(path)
        session.run(tf.global_variables_initializer())
        (train_op,) = tf.get_collection("train_op")
        found = [
            float(session.run(["loss:0", train_op], {"x:0": x, "y:0": y})[0]) for x, y in data[:-1]
        ]
        prefix = saver.save(session, str(tmp_path / "theirs"))
        with tf.Session() as other:
            saver.restore(other, prefix)
            found.append(
                float(other.run("loss:0", dict(zip(("x:0", "y:0"), data[-1], strict=True))))
            )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_training_is_saved_and_goes_on_without_the_model(rng, tmp_path):
    params, data = initial_params(rng), batches(rng)
    expected, _ = trained_by_optax(params, TRANSFORMATIONS["adamw"](), data)
    _, train_op, step = build(params, TRANSFORMATIONS["adamw"]())
    with jm.Session() as session, jm.Saver() as saver:
        session.run(jm.global_variables_initializer())
        for x, y in data[:2]:
            session.run(train_op, {"x:0": x, "y:0": y})
        prefix = saver.save(session, str(tmp_path / "model"), global_step=session.run(step))
    assert prefix.endswith("model-2")
    with jm.Graph().as_default(), jm.Session() as session:
        saver = jm.import_meta_graph(f"{prefix}.meta")
        saver.restore(session, prefix)
        (train_op,) = jm.get_collection("train_op")
        found = [
            float(session.run(["loss:0", train_op], {"x:0": x, "y:0": y})[0]) for x, y in data[2:]
        ]
        assert [v.name for v in jm.trainable_variables()] == ["hidden/w:0", "hidden/b:0", "out/w:0"]
    np.testing.assert_allclose(found, expected[2:], rtol=1e-5)


def test_what_an_imported_graph_infers_is_trained(rng, tmp_path):
    params, data = initial_params(rng), batches(rng)
    expected, _ = trained_by_optax(params, optax.adam(0.01), data)
    graph = jm.Graph()
    graph.add_signature(
        "predict",
        lambda p, x: jax.nn.relu(x @ p["hidden/w"] + p["hidden/b"]) @ p["out/w"],
        graph.variables(params),
        data[0][0],
    )
    with jm.Saver(graph) as saver:
        prefix = saver.save(params, str(tmp_path / "inference"))
    with jm.Graph().as_default(), jm.Session() as session:
        saver = jm.import_meta_graph(f"{prefix}.meta")
        saver.restore(session, prefix)
        restored = jm.global_variables()
        y = jm.placeholder("float32", [8, 2], name="y")
        predicted = jm.get_default_graph().get_tensor_by_name("predict:0")
        assert predicted.shape == (8, 2)
        loss = jm.call(lambda a, b: jnp.mean((a - b) ** 2), predicted, y)
        train_op = jm.minimize(loss, optax.adam(0.01))
        slots = [v for v in jm.global_variables() if v not in restored]
        session.run(jm.variables_initializer(slots))
        found = [float(session.run([loss, train_op], {"x:0": x, "y:0": y})[0]) for x, y in data]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_names_of_a_train_operation(rng):
    params = initial_params(rng)
    _, train_op, step = build(params, optax.adam(0.01))
    assert train_op.name == "minimize"
    assert train_op.type == "AssignAddVariableOp"
    assert train_op.control_inputs == []
    assert jm.get_collection("train_op") == [train_op]
    slots = [v.op_name for v in jm.global_variables() if v not in jm.trainable_variables()]
    assert sorted(set(slots) - {step.op_name}) == [
        "hidden/b/mu",
        "hidden/b/nu",
        "hidden/w/mu",
        "hidden/w/nu",
        "minimize/count",
        "out/w/mu",
        "out/w/nu",
    ]


def test_only_the_chosen_variables_change(rng):
    w, v = jm.Variable(2.0, name="w"), jm.Variable(3.0, name="v")
    jm.Variable(4.0, name="other")
    train_op = jm.minimize(w * v, optax.sgd(0.5), [w], name="train")
    assert train_op.name == "train"
    with jm.Session() as session:
        session.run(jm.global_variables_initializer())
        session.run(train_op)
        assert [float(session.run(f"{n}:0")) for n in ("w", "v", "other")] == [0.5, 3.0, 4.0]


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda w: jm.minimize(w * 2.0, optax.sgd(0.1), []), "no variables to optimize"),
        (lambda w: jm.minimize(jm.constant(1.0), optax.sgd(0.1)), "depends on none"),
        (lambda w: jm.minimize(w * 2.0, 0.1), "expected an optax transformation"),
    ],
)
def test_what_cannot_be_trained_is_refused(use, message):
    w = jm.Variable(2.0, name="w")
    with pytest.raises(errors.GraphError, match=message):
        use(w)
