"""Image classifiers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from . import arrays
from .entry import Made, program
from .training import cross_entropy, trained


class Bottleneck(nn.Module):
    """The residual block of ResNet-50."""

    width: int
    strides: int
    train: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not self.train, momentum=0.9, dtype=self.dtype
        )
        y = nn.relu(norm()(conv(self.width, (1, 1))(x)))
        y = nn.relu(norm()(conv(self.width, (3, 3), strides=(self.strides, self.strides))(y)))
        y = norm()(conv(4 * self.width, (1, 1))(y))
        if x.shape != y.shape:
            x = norm()(conv(4 * self.width, (1, 1), strides=(self.strides, self.strides))(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet v1.5."""

    depths: Sequence[int]
    width: int
    classes: int
    train: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(self.width, (7, 7), strides=(2, 2), use_bias=False, dtype=self.dtype)(x)
        x = nn.BatchNorm(use_running_average=not self.train, momentum=0.9, dtype=self.dtype)(x)
        x = nn.max_pool(nn.relu(x), (3, 3), strides=(2, 2), padding="SAME")
        for i, depth in enumerate(self.depths):
            for j in range(depth):
                strides = 2 if i > 0 and j == 0 else 1
                x = Bottleneck(self.width * 2**i, strides, self.train, self.dtype)(x)
        return nn.Dense(self.classes)(jnp.mean(x, axis=(1, 2)).astype(jnp.float32))


RESNET_REDUCED = {"depths": (1, 1), "width": 4, "classes": 7, "size": 16, "batch": 2}
RESNET50 = {"depths": (3, 4, 6, 3), "width": 64, "classes": 1000, "size": 224, "batch": 32}


def _variables(model: nn.Module, *inputs: Any) -> Any:
    return arrays.filled(jax.eval_shape(model.init, jax.random.key(0), *inputs))


@program("linen", reduced=RESNET_REDUCED, real=RESNET50)
def resnet50(depths: Sequence[int], width: int, classes: int, size: int, batch: int) -> Made:
    """ResNet-50's train step: batch statistics, label smoothing, Nesterov, weight decay."""
    model = ResNet(depths, width, classes)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.4, 5, 90)
    tx = optax.chain(
        optax.add_decayed_weights(1e-4, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
        optax.sgd(schedule, momentum=0.9, nesterov=True),
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss_fn(params: Any) -> Any:
            variables = {"params": params, "batch_stats": state["batch_stats"]}
            logits, moved = model.apply(variables, images, mutable=["batch_stats"])
            targets = optax.smooth_labels(jax.nn.one_hot(labels, classes), 0.1)
            return optax.softmax_cross_entropy(logits, targets).mean(), (logits, moved)

        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (logits, moved)), grads = grad_fn(state["params"])
        updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        accuracy = jnp.mean(jnp.argmax(logits, -1) == labels)
        return {"params": params, "opt_state": opt_state, **moved}, {
            "loss": loss,
            "accuracy": accuracy,
        }

    def init() -> Any:
        images = arrays.normal(batch, size, size, 3)
        variables = _variables(model, images)
        state = {**variables, "opt_state": jax.jit(tx.init)(variables["params"])}
        return state, images, arrays.integers(classes, batch)

    return Made(train_step, init, updates=True)


@program("linen", reduced=RESNET_REDUCED, real={**RESNET50, "batch": 128})
def resnet50_inference(
    depths: Sequence[int], width: int, classes: int, size: int, batch: int
) -> Made:
    """ResNet-50 in bfloat16 with running statistics: the five likeliest classes of uint8 images."""
    model = ResNet(depths, width, classes, train=False, dtype=jnp.bfloat16)
    mean, deviation = jnp.array([123.7, 116.3, 103.5]), jnp.array([58.4, 57.1, 57.4])

    def predict(variables: Any, images: jax.Array) -> Any:
        x = (images.astype(jnp.float32) - mean) / deviation
        values, ids = jax.lax.top_k(jax.nn.softmax(model.apply(variables, x)), 5)
        return {"probabilities": values, "classes": ids}

    def init() -> Any:
        images = arrays.integers(256, batch, size, size, 3).astype("uint8")
        return _variables(model, images.astype("float32")), images

    return Made(predict, init)


class EncoderBlock(nn.Module):
    """A pre-norm transformer encoder block."""

    heads: int
    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        y = nn.LayerNorm()(x)
        y = nn.MultiHeadDotProductAttention(
            self.heads, dropout_rate=self.rate, deterministic=deterministic
        )(y, y)
        x = x + nn.Dropout(self.rate)(y, deterministic=deterministic)
        y = nn.gelu(nn.Dense(4 * x.shape[-1])(nn.LayerNorm()(x)))
        return x + nn.Dropout(self.rate)(nn.Dense(x.shape[-1])(y), deterministic=deterministic)


class ViT(nn.Module):
    """A vision transformer with a class token."""

    patch: int
    layers: int
    width: int
    heads: int
    classes: int
    rate: float = 0.1

    @nn.compact
    def __call__(self, images: jax.Array, deterministic: bool = True) -> jax.Array:
        x = nn.Conv(self.width, (self.patch, self.patch), strides=(self.patch, self.patch))(images)
        x = x.reshape(x.shape[0], -1, self.width)
        token = self.param("cls", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, self.width)), x], axis=1)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        x = nn.Dropout(self.rate)(x, deterministic=deterministic)
        for _ in range(self.layers):
            x = EncoderBlock(self.heads, self.rate)(x, deterministic)
        return nn.Dense(self.classes)(nn.LayerNorm()(x)[:, 0])


@program(
    "linen",
    reduced={"size": 8, "patch": 4, "layers": 2, "width": 8, "heads": 2, "classes": 5, "batch": 2},
    real={
        "size": 224,
        "patch": 16,
        "layers": 12,
        "width": 768,
        "heads": 12,
        "classes": 1000,
        "batch": 32,
    },
)
def vit(
    size: int, patch: int, layers: int, width: int, heads: int, classes: int, batch: int
) -> Made:
    """ViT-B/16's train step: dropout, mixup, adamw behind clipping of the global norm."""
    model = ViT(patch, layers, width, heads, classes)

    def loss(params: Any, images: jax.Array, labels: jax.Array, key: jax.Array) -> jax.Array:
        mix_key, dropout_key = jax.random.split(key)
        share = jax.random.beta(mix_key, 0.8, 0.8)
        targets = jax.nn.one_hot(labels, classes)
        images = share * images + (1 - share) * images[::-1]
        targets = share * targets + (1 - share) * targets[::-1]
        logits = model.apply({"params": params}, images, False, rngs={"dropout": dropout_key})
        return optax.softmax_cross_entropy(logits, targets).mean()

    def batch_of() -> Any:
        images = arrays.normal(batch, size, size, 3)
        return images, arrays.integers(classes, batch), jax.random.key(3)

    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=0.05))
    image = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
    return trained(loss, lambda: _variables(model, image)["params"], batch_of, tx)


class ConvNeXtBlock(nnx.Module):
    """A depthwise convolution, a layer norm, an inverted bottleneck and a layer scale."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(width, width, (7, 7), feature_group_count=width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)
        self.gamma = nnx.Param(jnp.full((width,), 1e-6))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.gamma * self.down(nnx.gelu(self.up(self.norm(self.conv(x)))))


class ConvNeXt(nnx.Module):
    """ConvNeXt: stages of blocks, each behind a strided convolution."""

    def __init__(self, depths: Sequence[int], width: int, classes: int, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, width, (4, 4), strides=4, rngs=rngs)
        downs, stages, channels = [], [], width
        for i, depth in enumerate(depths):
            if i:
                downs.append(nnx.Conv(channels, 2 * channels, (2, 2), strides=2, rngs=rngs))
                channels *= 2
            stages.append(nnx.List([ConvNeXtBlock(channels, rngs) for _ in range(depth)]))
        self.downs, self.stages = nnx.List(downs), nnx.List(stages)
        self.head = nnx.Linear(channels, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem(x)
        for i, stage in enumerate(self.stages):
            x = self.downs[i - 1](x) if i else x
            for block in stage:
                x = block(x)
        return self.head(jnp.mean(x, axis=(1, 2)))


@program(
    "nnx",
    reduced={"depths": (1, 1), "width": 4, "classes": 5, "size": 16, "batch": 2},
    real={"depths": (3, 3, 9, 3), "width": 96, "classes": 1000, "size": 224, "batch": 32},
)
def convnext(depths: Sequence[int], width: int, classes: int, size: int, batch: int) -> Made:
    """ConvNeXt-T's train step, split and merged by nnx."""
    build: Callable[[], Any] = lambda: ConvNeXt(depths, width, classes, nnx.Rngs(0))  # noqa: E731
    graphdef, specs = nnx.split(nnx.eval_shape(build))

    def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        return cross_entropy(nnx.merge(graphdef, params)(images), labels)

    def batch_of() -> Any:
        return arrays.normal(batch, size, size, 3), arrays.integers(classes, batch)

    return trained(loss, lambda: arrays.filled(specs), batch_of, optax.adamw(4e-3))


class MixerBlock(eqx.Module):
    """Mixes patches, then channels."""

    norms: list[eqx.nn.LayerNorm]
    patches: eqx.nn.MLP
    channels: eqx.nn.MLP

    def __init__(self, number: int, width: int, key: jax.Array) -> None:
        keys = jax.random.split(key)
        self.norms = [eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)]
        self.patches = eqx.nn.MLP(number, number, 2 * number, 1, jax.nn.gelu, key=keys[0])
        self.channels = eqx.nn.MLP(width, width, 4 * width, 1, jax.nn.gelu, key=keys[1])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + jax.vmap(self.patches)(jax.vmap(self.norms[0])(x).T).T
        return x + jax.vmap(self.channels)(jax.vmap(self.norms[1])(x))


class Mixer(eqx.Module):
    """MLP-Mixer for one image, channels first."""

    stem: eqx.nn.Conv2d
    blocks: list[MixerBlock]
    head: eqx.nn.Linear

    def __init__(
        self, size: int, patch: int, layers: int, width: int, classes: int, key: jax.Array
    ) -> None:
        keys = jax.random.split(key, layers + 2)
        self.stem = eqx.nn.Conv2d(3, width, patch, patch, key=keys[0])
        self.blocks = [MixerBlock((size // patch) ** 2, width, k) for k in keys[2:]]
        self.head = eqx.nn.Linear(width, classes, key=keys[1])

    def __call__(self, image: jax.Array) -> jax.Array:
        x = self.stem(image)
        x = x.reshape(x.shape[0], -1).T
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(x, axis=0))


@program(
    "equinox",
    reduced={"size": 8, "patch": 4, "layers": 2, "width": 8, "classes": 5, "batch": 3},
    real={"size": 224, "patch": 16, "layers": 12, "width": 768, "classes": 1000, "batch": 32},
)
def mlp_mixer(size: int, patch: int, layers: int, width: int, classes: int, batch: int) -> Made:
    """MLP-Mixer B/16's train step: modules of one example under vmap, partitioned."""
    build = functools.partial(Mixer, size, patch, layers, width, classes)
    model = eqx.filter_eval_shape(build, jax.random.key(0))
    is_array = jax.tree.map(lambda x: isinstance(x, jax.ShapeDtypeStruct), model)
    specs, static = eqx.partition(model, is_array)

    def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        return cross_entropy(jax.vmap(eqx.combine(params, static))(images), labels)

    def batch_of() -> Any:
        return arrays.normal(batch, 3, size, size), arrays.integers(classes, batch)

    tx = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(1e-3, 100))
    )
    return trained(loss, lambda: arrays.filled(specs), batch_of, tx)


@program(
    "linen",
    reduced={"size": 12, "classes": 10, "batch": 4},
    real={"size": 28, "classes": 10, "batch": 128},
)
def lenet(size: int, classes: int, batch: int) -> Made:
    """LeNet as in flax's MNIST example, with dropout and a loss over valid examples alone."""

    class LeNet(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
            x = nn.avg_pool(nn.relu(nn.Conv(16, (3, 3))(x)), (2, 2), strides=(2, 2))
            x = nn.max_pool(nn.relu(nn.Conv(16, (3, 3))(x)), (2, 2), strides=(2, 2))
            x = nn.relu(nn.Dense(32)(x.reshape(x.shape[0], -1)))
            return nn.Dense(classes)(nn.Dropout(0.5)(x, deterministic=deterministic))

    model = LeNet()

    def loss(params: Any, images: jax.Array, labels: jax.Array, key: jax.Array) -> jax.Array:
        logits = model.apply({"params": params}, images, False, rngs={"dropout": key})
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        losses = jnp.where(labels >= 0, losses, 0.0)
        return jnp.sum(losses) / jnp.maximum(jnp.sum(labels >= 0), 1)

    def batch_of() -> Any:
        images = arrays.normal(batch, size, size, 1)
        return images, arrays.integers(classes + 1, batch) - 1, jax.random.PRNGKey(1)

    image = jax.ShapeDtypeStruct((1, size, size, 1), "float32")
    return trained(loss, lambda: _variables(model, image)["params"], batch_of, optax.sgd(0.1, 0.9))
