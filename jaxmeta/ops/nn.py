"""Activations, losses and what else TensorFlow's nn ops compute, with their gradients."""

from __future__ import annotations

import math
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmeta.ops._definition import kernel
from jaxmeta.ops._gradients import pull_back

_SELU_ALPHA: Final = 1.6732632423543772848170429916717
_SELU_SCALE: Final = 1.0507009873554804934193349852946


def _number(value: float, x: Any) -> np.ndarray[Any, Any]:
    return np.asarray(value, x.dtype)


# --- activations -------------------------------------------------------------------------------


@kernel("Relu")
def relu(features: Any) -> Any:
    # The gradient at 0 is 0, which that of a maximum is not.
    return jax.nn.relu(features) if features.dtype.kind not in "iu" else jnp.maximum(features, 0)


@kernel("ReluGrad")
def relu_grad(gradients: Any, features: Any) -> Any:
    return jnp.where(features > 0, gradients, jnp.zeros((), gradients.dtype))


@kernel("Relu6")
def relu6(features: Any) -> Any:
    # The gradients at 0 and 6 are 0, which those of extrema are not.
    zero, six = _number(0, features), _number(6, features)
    return jnp.where(features <= zero, zero, jnp.where(features >= six, six, features))


@kernel("Relu6Grad")
def relu6_grad(gradients: Any, features: Any) -> Any:
    is_inside = (features > 0) & (features < 6)
    return jnp.where(is_inside, gradients, jnp.zeros((), gradients.dtype))


@kernel("LeakyRelu")
def leaky_relu(features: Any, *, alpha: float) -> Any:
    return jnp.where(features > 0, features, features * _number(alpha, features))


@kernel("LeakyReluGrad")
def leaky_relu_grad(gradients: Any, features: Any, *, alpha: float) -> Any:
    return jnp.where(features > 0, gradients, gradients * _number(alpha, features))


@kernel("Elu")
def elu(features: Any) -> Any:
    return _elu(features, _number(1, features))


def _elu(x: Any, alpha: Any) -> Any:
    """Returns the activation, whose gradients at 0 are those of the numbers above."""
    is_below = x < 0
    return jnp.where(is_below, alpha * jnp.expm1(jnp.where(is_below, x, _number(0, x))), x)


@kernel("EluGrad")
def elu_grad(gradients: Any, outputs: Any) -> Any:
    return jnp.where(outputs < 0, (outputs + 1) * gradients, gradients)


@kernel("Selu")
def selu(features: Any) -> Any:
    scale, alpha = _number(_SELU_SCALE, features), _number(_SELU_ALPHA, features)
    return scale * _elu(features, alpha)


@kernel("SeluGrad")
def selu_grad(gradients: Any, outputs: Any) -> Any:
    scale = _number(_SELU_SCALE, outputs)
    scaled_alpha = _number(_SELU_SCALE * _SELU_ALPHA, outputs)
    return jnp.where(outputs < 0, gradients * (outputs + scaled_alpha), gradients * scale)


@kernel("Softplus")
def softplus(features: Any) -> Any:
    return jax.nn.softplus(features)


@kernel("SoftplusGrad")
def softplus_grad(gradients: Any, features: Any) -> Any:
    return gradients / (jnp.exp(-features) + 1)


@kernel("Softsign")
def softsign(features: Any) -> Any:
    return features / (1 + jnp.abs(features))


@kernel("SoftsignGrad")
def softsign_grad(gradients: Any, features: Any) -> Any:
    return gradients / lax.square(1 + jnp.abs(features))


@kernel("Softmax")
def softmax(logits: Any) -> Any:
    return jax.nn.softmax(logits, axis=-1)


@kernel("LogSoftmax")
def log_softmax(logits: Any) -> Any:
    return jax.nn.log_softmax(logits, axis=-1)


# --- biases ------------------------------------------------------------------------------------


def _is_channels_first(data_format: bytes) -> bool:
    return data_format.startswith(b"NC")


@kernel("BiasAdd")
def bias_add(value: Any, bias: Any, *, data_format: bytes) -> Any:
    if _is_channels_first(data_format):
        bias = jnp.reshape(bias, (-1,) + (1,) * (value.ndim - 2))
    return value + bias


@kernel("BiasAddV1")
def bias_add_v1(value: Any, bias: Any) -> Any:
    return value + bias


@kernel("BiasAddGrad")
def bias_add_grad(out_backprop: Any, *, data_format: bytes) -> Any:
    channels = 1 if _is_channels_first(data_format) else out_backprop.ndim - 1
    axes = [axis for axis in range(out_backprop.ndim) if axis != channels]
    return lax.reduce_sum(jnp.asarray(out_backprop), axes)


# --- losses ------------------------------------------------------------------------------------


@kernel("L2Loss")
def l2_loss(t: Any) -> Any:
    return jnp.sum(lax.square(t)) * _number(0.5, t)


@kernel("SoftmaxCrossEntropyWithLogits")
def softmax_cross_entropy(features: Any, labels: Any) -> list[Any]:
    """Returns the loss of each row, and its gradient with respect to the features.

    TensorFlow takes that for the gradient also where the labels do not add up to 1, and says that
    it does not depend on them.
    """
    return list(_cross_entropy(*jnp.broadcast_arrays(features, labels)))


@jax.custom_jvp
def _cross_entropy(features: Any, labels: Any) -> tuple[Any, Any]:
    log_probabilities = jax.nn.log_softmax(features, axis=-1)
    loss = -jnp.sum(labels * log_probabilities, axis=-1)
    return loss, jnp.exp(log_probabilities) - labels


@_cross_entropy.defjvp
def _cross_entropy_jvp(primals: Any, tangents: Any) -> Any:
    features, labels = primals
    of_features, of_labels = tangents
    loss, gradient = _cross_entropy(features, labels)
    log_probabilities = jax.nn.log_softmax(features, axis=-1)
    loss_tangent = jnp.sum(gradient * of_features - log_probabilities * of_labels, axis=-1)
    weighted = jnp.exp(log_probabilities) * of_features
    total = jnp.sum(weighted, axis=-1, keepdims=True)
    return (loss, gradient), (loss_tangent, weighted - jnp.exp(log_probabilities) * total)


@kernel("SparseSoftmaxCrossEntropyWithLogits")
def sparse_softmax_cross_entropy(features: Any, labels: Any) -> list[Any]:
    """Returns losses and gradients; NaN in rows whose label is no class, as on TensorFlow's GPU."""
    classes = features.shape[-1]
    log_probabilities = jax.nn.log_softmax(features, axis=-1)
    safe = jnp.clip(labels, 0, max(classes - 1, 0))
    loss = -jnp.take_along_axis(log_probabilities, safe[..., None], axis=-1)[..., 0]
    gradient = jnp.exp(log_probabilities) - jax.nn.one_hot(safe, classes, dtype=features.dtype)
    is_class = (labels >= 0) & (labels < classes)
    nan = _number(math.nan, features)
    return [jnp.where(is_class, loss, nan), jnp.where(is_class[..., None], gradient, nan)]


@kernel("InTopK")
def in_top_k(predictions: Any, targets: Any, *, k: int) -> Any:
    return in_top_k_v2(predictions, targets, k)


@kernel("InTopKV2")
def in_top_k_v2(predictions: Any, targets: Any, k: Any) -> Any:
    """Returns whether fewer than k classes are larger; never where a number is not finite."""
    classes = predictions.shape[1]
    is_class = (targets >= 0) & (targets < classes)
    safe = jnp.clip(targets, 0, max(classes - 1, 0))
    chosen = jnp.take_along_axis(predictions, safe[:, None], axis=1)
    is_larger = jnp.sum(predictions > chosen, axis=1)
    is_finite = jnp.all(jnp.isfinite(predictions) | (predictions <= chosen), axis=1)
    return is_class & is_finite & jnp.isfinite(chosen[:, 0]) & (is_larger < k)


# --- normalization -----------------------------------------------------------------------------


def _local_scale(x: Any, depth_radius: int, bias: float, alpha: float) -> Any:
    window = (1, 1, 1, 2 * depth_radius + 1)
    pads = ((0, 0), (0, 0), (0, 0), (depth_radius, depth_radius))
    squares = lax.reduce_window(lax.square(x), _number(0, x), lax.add, window, (1, 1, 1, 1), pads)
    return _number(bias, x) + _number(alpha, x) * squares


@kernel("LRN")
def local_response_normalization(
    input: Any, *, depth_radius: int, bias: float, alpha: float, beta: float
) -> Any:
    return input * jnp.power(_local_scale(input, depth_radius, bias, alpha), _number(-beta, input))


@kernel("LRNGrad")
def local_response_normalization_grad(
    input_grads: Any,
    input_image: Any,
    output_image: Any,
    *,
    depth_radius: int,
    bias: float,
    alpha: float,
    beta: float,
) -> Any:
    del output_image  # computed anew

    def forward(x: Any) -> Any:
        return local_response_normalization(
            x, depth_radius=depth_radius, bias=bias, alpha=alpha, beta=beta
        )

    return pull_back(forward, input_image, input_grads)
