"""What becomes of a call that is saved and loaded: the same program, the same bits, or why not."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from hlo import canonical_stablehlo

import jaxmeta
from jaxmeta import errors
from jaxmeta._proto import meta_graph_pb2
from jaxmeta.meta_graphs import meta_graph
from sweep.arguments import Call

SAME_PROGRAM = "the same StableHLO"
SAME_BITS = "another StableHLO, the same bits"
REFUSED = "refused: "
DIFFERENT = "DIFFERENT: "


def outcome(call: Call) -> str:
    """Returns how a call came back: the same program, the same bits, refused, or different.

    The last two are followed by the primitives, and by what differs.
    """
    original = jax.jit(call.fn)
    graph = jaxmeta.Graph()
    try:
        graph.add_signature("call", original, *call.arrays)
    except errors.UnsupportedPrimitiveError as error:
        return REFUSED + primitives_of(error)
    content = meta_graph.export_meta_graph(graph=graph).SerializeToString(deterministic=True)
    read = meta_graph.import_graph(meta_graph_pb2.MetaGraphDef.FromString(content))
    imported = jaxmeta.Program(read, {})["call"]
    infos = [jax.tree.leaves(fn.trace(*call.arrays).out_info) for fn in (original, imported)]
    if infos[0] != infos[1]:
        return DIFFERENT + f"expected {infos[0]}, found {infos[1]}"
    texts = [fn.lower(*call.arrays).as_text() for fn in (original, imported)]
    if texts[0] == texts[1] or canonical_stablehlo(texts[0]) == canonical_stablehlo(texts[1]):
        return SAME_PROGRAM
    results = [jax.tree.leaves(fn(*call.arrays)) for fn in (original, imported)]
    different = [
        i for i, pair in enumerate(zip(*results, strict=True)) if bits(pair[0]) != bits(pair[1])
    ]
    return DIFFERENT + f"the bits of results {different}" if different else SAME_BITS


def primitives_of(error: errors.UnsupportedPrimitiveError) -> str:
    """Returns the primitives that a refusal lists, as it writes them first in each line."""
    lines = [line.split() for line in str(error).splitlines()[1:] if line.startswith("  ")]
    return ", ".join(sorted({line[0] for line in lines if line}))


def bits(result: Any) -> Any:
    if jax.numpy.issubdtype(result.dtype, jax.dtypes.prng_key):
        return result.dtype, bits(jax.random.key_data(result))
    array = np.asarray(result)
    return array.dtype, array.shape, array.tobytes()
