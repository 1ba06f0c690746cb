"""The op table: importing this package fills it, one family of ops a module."""

from jaxmeta.ops import calls as calls
from jaxmeta.ops import control_flow as control_flow
from jaxmeta.ops import conv as conv
from jaxmeta.ops import custom_derivatives as custom_derivatives
from jaxmeta.ops import dot as dot
from jaxmeta.ops import fft as fft
from jaxmeta.ops import gather as gather
from jaxmeta.ops import linalg as linalg
from jaxmeta.ops import pointwise as pointwise
from jaxmeta.ops import random as random
from jaxmeta.ops import reduce as reduce
from jaxmeta.ops import shape as shape
from jaxmeta.ops import sort as sort
from jaxmeta.ops import state as state
from jaxmeta.ops import window as window
