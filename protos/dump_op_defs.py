"""Writes jaxmeta/op_defs.pbtxt and op_defs.pb from the installed TensorFlow.

The vocabulary is the text file itself: the ops it names are looked up again in TensorFlow, or in
retired_op_defs.pbtxt where TensorFlow has them no more.

    python protos/dump_op_defs.py                    # look up all of them again
    python protos/dump_op_defs.py --add Foo BarV2    # and these too
    python protos/dump_op_defs.py --check            # write nothing; exit 1 if they differ
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import tensorflow as tf
from google.protobuf import text_format
from tensorflow.python.client import pywrap_tf_session

from jaxmeta._proto import graph_pb2

TEXT_PATH = pathlib.Path(__file__).parents[1] / "jaxmeta" / "op_defs.pbtxt"
RETIRED_PATH = pathlib.Path(__file__).with_name("retired_op_defs.pbtxt")
BINARY_PATH = TEXT_PATH.with_suffix(".pb")
HEADER = """\
# The ops that jaxmeta knows: their OpDefs as TensorFlow {version} registers them, without prose.
# Written by protos/dump_op_defs.py, with op_defs.pb; to add an op: --add NAME.

"""


def registered_op_defs() -> dict[str, graph_pb2.OpDef]:
    """Returns every op of the installed TensorFlow, and the retired, by name, without prose."""
    serialized = pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList())
    op_defs = {op_def.name: op_def for op_def in graph_pb2.OpList.FromString(serialized).op}
    for op_def in op_defs.values():
        for described in (op_def, *op_def.input_arg, *op_def.output_arg, *op_def.attr):
            described.ClearField("description")
        op_def.ClearField("summary")
    return op_defs | retired_op_defs()


def retired_op_defs() -> dict[str, graph_pb2.OpDef]:
    """Returns the ops that TensorFlow registers no more, by name."""
    text = RETIRED_PATH.read_text(encoding="utf-8")
    return {op_def.name: op_def for op_def in text_format.Parse(text, graph_pb2.OpList()).op}


def listed_op_names() -> set[str]:
    """Returns the names of the ops in the text file."""
    op_list = text_format.Parse(TEXT_PATH.read_text(encoding="utf-8"), graph_pb2.OpList())
    return {op_def.name for op_def in op_list.op}


def main() -> int:
    """Writes or checks the two files; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--add", nargs="+", default=[], metavar="OP")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()

    registered = registered_op_defs()
    names = listed_op_names().union(arguments.add)
    if unknown := sorted(names - registered.keys()):
        print(f"TensorFlow {tf.__version__} has no op named {', '.join(unknown)}", file=sys.stderr)
        return 1
    op_list = graph_pb2.OpList(op=[registered[name] for name in sorted(names)])
    text = HEADER.format(version=tf.__version__) + text_format.MessageToString(op_list)
    binary = op_list.SerializeToString(deterministic=True)
    if arguments.check:
        same = TEXT_PATH.read_text(encoding="utf-8") == text and BINARY_PATH.read_bytes() == binary
        print("op_defs are up to date" if same else "op_defs are not; run protos/dump_op_defs.py")
        return 0 if same else 1
    TEXT_PATH.write_text(text, encoding="utf-8")
    BINARY_PATH.write_bytes(binary)
    print(f"{len(names)} ops, {len(text)} bytes of text, {len(binary)} bytes binary")
    return 0


if __name__ == "__main__":
    sys.exit(main())
