"""Every example of every op in stock TensorFlow, as one XLA program and as single nodes."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_oracle

from jaxmeta import graph, trace
from jaxmeta.ops import _definition
from jaxmeta.ops._definition import Example, Spec

EXAMPLES = tuple(_definition.EXAMPLES)
