"""Files of images, which are decoded and encoded outside graphs here."""

from __future__ import annotations

from jaxmeta import op_defs
from jaxmeta.ops._definition import REFUSED_OPS

for _op in (
    "DecodeAndCropJpeg",
    "DecodeBmp",
    "DecodeGif",
    "DecodeImage",
    "DecodeJpeg",
    "DecodePng",
    "DecodeWebP",
    "EncodeJpeg",
    "EncodeJpegVariableQuality",
    "EncodePng",
    "ExtractJpegShape",
):
    op_defs.get_op_def(_op)
    REFUSED_OPS[_op] = (
        "jaxmeta brings no library for files of images; decode or encode them outside the graph"
    )
