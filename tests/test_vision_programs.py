"""Programs on images that TensorFlow wrote, which go on in JAX as they do in TensorFlow."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import jaxmeta
from jaxmeta import dtypes
from jaxmeta.execution import executor


def train_unet(tf: Any, rng: np.random.Generator) -> tuple[Any, ...]:
    """Skip connections, both resizings, indices of maxima, dilations; images of any size."""
    tf1 = tf.compat.v1
    x = tf1.placeholder(tf.float32, [None, None, None, 3], name="x")
    y = tf1.placeholder(tf.float32, [None, None, None, 1], name="y")

    def convolve(images: Any, name: str, shape: tuple[int, int]) -> Any:
        weights = tf1.get_variable(name, [3, 3, *shape])
        return tf.nn.leaky_relu(tf.nn.conv2d(images, weights, 1, "SAME"))

    first = convolve(x, "first", (3, 4))
    pooled, _ = tf1.nn.max_pool_with_argmax(first, [1, 2, 2, 1], [1, 2, 2, 1], "SAME")
    second = convolve(pooled, "second", (4, 8))
    third = convolve(tf.nn.avg_pool2d(second, 2, 2, "SAME"), "third", (8, 8))
    up = tf1.image.resize_bilinear(third, tf.shape(second)[1:3], align_corners=True)
    fourth = convolve(tf.concat([up, second], 3), "fourth", (16, 4))
    up = tf1.image.resize_nearest_neighbor(fourth, tf.shape(first)[1:3])
    fifth = convolve(tf.concat([up, first], 3), "fifth", (8, 4))
    channels = tf1.get_variable("channels", [3, 3, 4, 1])
    fifth = tf1.nn.depthwise_conv2d(fifth, channels, [1, 1, 1, 1], "SAME", rate=[2, 2])
    fifth = tf1.depth_to_space(tf1.space_to_depth(fifth, 2), 2)
    shape = tf1.get_variable("shape", [3, 3, 4])
    fifth = tf.nn.dilation2d(fifth, shape, [1, 1, 1, 1], "SAME", "NHWC", [1, 1, 1, 1])
    logits = tf.nn.conv2d(fifth, tf1.get_variable("last", [1, 1, 4, 1]), 1, "SAME")
    loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=y, logits=logits))
    step = tf1.train.MomentumOptimizer(0.05, 0.9, use_nesterov=True).minimize(loss)
    images = rng.normal(size=(2, 12, 8, 3)).astype(np.float32)
    labels = rng.integers(0, 2, (2, 12, 8, 1)).astype(np.float32)
    return {x: images, y: labels}, [loss, logits], step


def train_spatial_transformer(tf: Any, rng: np.random.Generator) -> tuple[Any, ...]:
    """Images sampled where a network says, by gathers; bicubic resizing; local normalization."""
    tf1 = tf.compat.v1
    x = tf1.placeholder(tf.float32, [None, 12, 12, 1], name="x")
    y = tf1.placeholder(tf.int64, [None], name="y")
    start = tf1.random_normal_initializer(stddev=0.05)
    hidden = tf.tanh(tf.matmul(tf.reshape(x, [-1, 144]), tf1.get_variable("w1", [144, 20])))
    bias = tf1.get_variable("b2", initializer=np.float32([1, 0, 0, 0, 1, 0]))
    maps = tf.matmul(hidden, tf1.get_variable("w2", [20, 6], initializer=start)) + bias
    count, size = tf.shape(x)[0], 10
    columns, rows = tf.meshgrid(tf.linspace(-1.0, 1.0, size), tf.linspace(-1.0, 1.0, size))
    grid = tf.stack([tf.reshape(columns, [-1]), tf.reshape(rows, [-1]), tf.ones([size * size])])
    places = tf.matmul(tf.reshape(maps, [-1, 2, 3]), tf.tile(grid[None], [count, 1, 1]))
    places = (tf.reshape(places, [count, 2, size, size]) + 1.0) * 0.5 * 10.0
    low = tf.clip_by_value(tf.cast(tf.floor(places), tf.int32), 0, 11)
    high = tf.clip_by_value(low + 1, 0, 11)
    owner = tf.tile(tf.reshape(tf.range(count), [count, 1, 1]), [1, size, size])
    share = places - tf.cast(low, tf.float32)

    def read(rows: Any, columns: Any) -> Any:
        return tf.gather_nd(x, tf.stack([owner, rows, columns], 3))[..., 0]

    upper = (
        read(low[:, 1], low[:, 0]) * (1 - share[:, 0]) + read(low[:, 1], high[:, 0]) * share[:, 0]
    )
    lower = (
        read(high[:, 1], low[:, 0]) * (1 - share[:, 0]) + read(high[:, 1], high[:, 0]) * share[:, 0]
    )
    sampled = (upper * (1 - share[:, 1]) + lower * share[:, 1])[..., None]
    wide = tf.image.resize(sampled, [15, 15], method="bicubic")
    found = tf.nn.relu(tf.nn.conv2d(wide, tf1.get_variable("w3", [3, 3, 1, 6]), 1, "SAME"))
    found = tf1.nn.local_response_normalization(tf.nn.max_pool2d(found, 3, 2, "SAME"))
    logits = tf.matmul(tf.reshape(found, [-1, 384]), tf1.get_variable("w4", [384, 5]))
    loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits))
    step = tf1.train.AdamOptimizer(0.01).minimize(loss)
    images = rng.uniform(0.0, 1.0, (4, 12, 12, 1)).astype(np.float32)
    return {x: images, y: rng.integers(0, 5, 4)}, [loss], step


def train_on_volumes(tf: Any, rng: np.random.Generator) -> tuple[Any, ...]:
    """Convolutions, their transposes, pooling and normalization over three axes."""
    tf1 = tf.compat.v1
    x = tf1.placeholder(tf.float32, [None, 8, 8, 6, 2], name="x")
    y = tf1.placeholder(tf.float32, [None, 3], name="y")
    h = tf.nn.relu(tf.nn.conv3d(x, tf1.get_variable("w1", [3, 3, 3, 2, 4]), [1] * 5, "SAME"))
    h = tf1.nn.max_pool3d(h, [1, 2, 2, 2, 1], [1, 2, 2, 2, 1], "SAME")
    scale = tf1.get_variable("scale", initializer=np.ones(4, np.float32))
    mean, variance = tf.nn.moments(h, [0, 1, 2, 3])
    h = tf.nn.batch_normalization(h, mean, variance, None, scale, 1e-3)
    w2 = tf1.get_variable("w2", [2, 2, 2, 4, 5])
    h = tf.nn.elu(tf.nn.conv3d(h, w2, [1, 1, 2, 1, 1], "VALID"))
    h = tf1.nn.avg_pool3d(h, [1, 2, 1, 2, 1], [1] * 5, "SAME")
    w3, shape = tf1.get_variable("w3", [2, 2, 2, 3, 5]), [tf.shape(x)[0], 6, 4, 4, 3]
    h = tf1.nn.conv3d_transpose(h, w3, shape, [1, 2, 2, 2, 1], "SAME")
    loss = tf.reduce_mean((tf.reduce_mean(h, [1, 2, 3]) - y) ** 2)
    step = tf1.train.AdamOptimizer(0.01).minimize(loss)
    volumes = rng.normal(size=(3, 8, 8, 6, 2)).astype(np.float32)
    return {x: volumes, y: rng.normal(size=(3, 3)).astype(np.float32)}, [loss], step


def train_quantized(tf: Any, rng: np.random.Generator) -> tuple[Any, ...]:
    """Weights and activations on grids, of which some ranges are trained."""
    tf1 = tf.compat.v1
    x = tf1.placeholder(tf.float32, [None, 20], name="x")
    y = tf1.placeholder(tf.int64, [None], name="y")
    h = x
    for i, (rows, columns) in enumerate([(20, 16), (16, 8), (8, 4)]):
        weights = tf1.get_variable(f"w{i}", [rows, columns])
        low, high = (
            tf1.get_variable(f"{name}{i}", initializer=np.float32(value), trainable=False)
            for name, value in (("low", -6), ("high", 6))
        )
        ends = (
            tf1.assign(low, tf.reduce_min(weights)),
            tf1.assign(high, tf.reduce_max(weights)),
        )
        on_grid = tf.quantization.fake_quant_with_min_max_vars(weights, *ends, narrow_range=True)
        h = tf.matmul(h, on_grid)
        if i < 2:
            h = tf.quantization.fake_quant_with_min_max_args(tf.nn.relu6(h), 0, 6)
            ends = (
                tf1.get_variable(f"from{i}", initializer=np.full(columns, -0.5, np.float32)),
                tf1.get_variable(f"to{i}", initializer=np.full(columns, 2.5, np.float32)),
            )
            h = tf.quantization.fake_quant_with_min_max_vars_per_channel(h, *ends)
            h = tf.quantization.quantize_and_dequantize_v2(h, -1.0, 3.0, num_bits=6)
    loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=h))
    step = tf1.train.GradientDescentOptimizer(0.1).minimize(loss)
    rows = rng.normal(size=(16, 20)).astype(np.float32)
    return {x: rows, y: rng.integers(0, 4, 16)}, [loss], step


def detect(tf: Any, rng: np.random.Generator) -> tuple[Any, ...]:
    """What follows a detector: boxes of anchors, the best of them, and crops; not trained."""
    tf1 = tf.compat.v1
    x = tf1.placeholder(tf.float32, [None, 16, 16, 3], name="x")
    anchors = tf.constant(rng.uniform(0.0, 1.0, (64, 4)).astype(np.float32))
    features = tf.nn.relu6(tf.nn.conv2d(x, tf1.get_variable("w", [3, 3, 3, 28]), 2, "SAME"))
    found = (
        tf.reshape(tf.nn.conv2d(features, tf1.get_variable(name, [1, 1, 28, 4]), 1, "SAME"), shape)
        for name, shape in (("places", [-1, 64, 4]), ("classes", [-1, 64, 4]))
    )
    moves, scores = next(found), tf.sigmoid(next(found))
    center = moves[..., :2] / 10 * anchors[:, 2:] + anchors[:, :2]
    half = tf.exp(moves[..., 2:] / 5) * anchors[:, 2:] / 2
    boxes = tf.concat([center - half, center + half], 2)
    best = tf.image.non_max_suppression(boxes[0], scores[0, :, 1], 10, 0.3, 0.2)
    chosen = tf.gather(boxes[0], best)
    crops = tf.image.crop_and_resize(x, chosen, tf.zeros_like(best), [6, 6])
    of_all = tf.image.combined_non_max_suppression(boxes[:, :, None], scores, 5, 12, 0.4, 0.3)
    drawn = tf.image.draw_bounding_boxes(x, of_all[0], np.float32([[1, 0, 0, 1]]))
    images = rng.uniform(0.0, 1.0, (2, 16, 16, 3)).astype(np.float32)
    return {x: images}, [chosen, crops, *of_all, drawn], None


def adjust(tf: Any, rng: np.random.Generator) -> tuple[Any, ...]:
    """What prepares images: colors, sizes that are computed as floats, patches, maps."""
    tf1 = tf.compat.v1
    x = tf1.placeholder(tf.uint8, [14, 10, 3], name="x")
    image = tf.image.convert_image_dtype(x, tf.float32)
    image = tf.image.adjust_contrast(tf.image.adjust_brightness(image, 0.1), 1.3)
    image = tf.image.adjust_saturation(tf.image.adjust_hue(image, 0.1), 0.7)
    image = tf.image.resize_with_pad(tf.image.central_crop(image, 0.8), 12, 16)
    image = tf.image.per_image_standardization(tf.image.transpose(image))
    batch = image[None]
    return (
        {x: rng.integers(0, 255, (14, 10, 3)).astype(np.uint8)},
        [
            tf.image.resize(batch, [5, 9], antialias=True, method="lanczos3"),
            tf.image.resize(batch, [5, 9], method="area"),
            tf.image.extract_patches(batch, [1, 3, 3, 1], [1, 2, 2, 1], [1, 1, 1, 1], "VALID"),
            tf.image.sobel_edges(batch),
            tf.image.image_gradients(batch)[0],
            tf.image.resize(tf.cast(x, tf.float32), [7, 20], preserve_aspect_ratio=True),
        ],
        None,
    )


PROGRAMS = (
    train_unet,
    train_spatial_transformer,
    train_on_volumes,
    train_quantized,
    detect,
    adjust,
)


@pytest.mark.needs_tf
@pytest.mark.parametrize("make", PROGRAMS, ids=lambda make: make.__name__)
def test_program_goes_on_as_in_tensorflow(make, rng, tmp_path, tensorflow):
    tf1, prefix = tensorflow.compat.v1, str(tmp_path / "theirs")
    with tensorflow.Graph().as_default(), tf1.Session() as session:
        tf1.set_random_seed(1)
        fed, tensors, step = make(tensorflow, rng)
        feeds = {tensor.name: array for tensor, array in fed.items()}
        fetches = [tensor.name for tensor in tensors] + ([step.name] if step else [])
        saver = tf1.train.Saver() if tf1.global_variables() else None
        session.run(tf1.global_variables_initializer())
        if saver is None:
            tf1.train.export_meta_graph(f"{prefix}.meta")
        else:
            saver.save(session, prefix)
        runs = 4 if step else 1
        expected = [session.run(fetches, feeds)[: len(tensors)] for _ in range(runs)]

    with jaxmeta.Graph().as_default(), jaxmeta.Session() as session:
        restorer = jaxmeta.import_meta_graph(f"{prefix}.meta")
        if saver is not None:
            restorer.restore(session, prefix)
        found = [session.run(fetches, feeds)[: len(tensors)] for _ in range(runs)]
    for ours, theirs in zip(found, expected, strict=True):
        for have, want in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-4)


@pytest.mark.needs_tf
def test_padded_suppression_is_traced(tensorflow, rng, tmp_path):
    tf1, path = tensorflow.compat.v1, str(tmp_path / "theirs.meta")
    boxes, scores = (spec.astype(np.float32) for spec in (rng.random((20, 4)), rng.random(20)))
    with tensorflow.Graph().as_default(), tf1.Session() as session:
        inputs = [tf1.placeholder(tensorflow.float32, a.shape) for a in (boxes, scores)]
        indices, count = tensorflow.raw_ops.NonMaxSuppressionV4(
            boxes=inputs[0],
            scores=inputs[1],
            max_output_size=8,
            iou_threshold=0.4,
            score_threshold=0.2,
            pad_to_max_output_size=True,
        )
        tf1.train.export_meta_graph(path)
        expected = session.run([indices, count], dict(zip(inputs, (boxes, scores), strict=True)))
    with jaxmeta.Graph().as_default() as ours:
        jaxmeta.import_meta_graph(path)
    plan = executor.plan_graph(
        ours.nodes,
        executor.Library(ours.functions),
        [tensor.name for tensor in inputs],
        [indices.name, count.name],
    )
    assert not plan.is_host
    for have, want in zip(
        jax.jit(lambda *fed: plan.run(fed))(boxes, scores), expected, strict=True
    ):
        np.testing.assert_array_equal(have, want)


def test_files_of_images_are_refused_with_what_to_do():
    graph = jaxmeta.Graph()
    (content,) = graph.add_node("Placeholder", [], {"dtype": dtypes.STRING, "shape": ()}, "content")
    graph.add_node("DecodePng", [content], {}, "decoded")
    refusal = pytest.raises(jaxmeta.UnsupportedOpError, match=r"DecodePng.*outside the graph")
    with jaxmeta.Session(graph) as session, refusal:
        session.run("decoded:0", {"content:0": b""})
