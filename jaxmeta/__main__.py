"""The command ``jaxmeta``, also as ``python -m jaxmeta``: looks into saved programs, runs them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from jaxmeta import __version__, errors

_EXIT_ERROR = 2
_EXIT_DIFFERENT = 1  # as diff and cmp have it

_DESCRIPTION = """\
Looks into programs that jaxmeta or TensorFlow saved as MetaGraphs, and runs those of jaxmeta.

A saved program is a graph, model-100.meta, beside the values of its variables, model-100/. It can
hold several entry points, its signatures, which share the variables: train_step, predict, ...
"""

_EPILOG = """\
examples:
  jaxmeta show runs/digits                          what the latest checkpoint there holds
  jaxmeta run runs/digits -s predict --feed random  run one of its entry points
  jaxmeta diff model-100.meta model-200.meta        what differs between two programs

Each command has its own help: jaxmeta show --help
"""

_SHOW_DESCRIPTION = """\
Prints what is in a MetaGraph: entry points with what they take and return, variables, collections,
how often each op occurs, and by what the file was written.

Nothing is run. No checkpoint has to be there, and the file may be TensorFlow's.
"""

_SHOW_EPILOG = """\
how to read a signature:
  argument 0   4 variables: params, step; donated; replaced by result 0
      takes variables of the graph, reuses their memory, and returns their new values
  argument 1   feed batch/image  float32[64,8,8,1]
      takes an array, named batch/image in `jaxmeta run`, and batch/image:0 in Session.run

examples:
  jaxmeta show model-100.meta                       everything, long lists cut
  jaxmeta show runs/digits --signatures             the latest checkpoint of a directory
  jaxmeta show model-100 --variables --all          all the variables
  jaxmeta show model-100.meta --nodes               the nodes and functions, as assignments
  jaxmeta show model-100.meta --json | jq .ops      for programs
"""

_DIFF_DESCRIPTION = """\
Prints what differs between two MetaGraphs: versions, signatures, variables, collections, and nodes
and functions, which are compared by what they compute before they are compared by name.

The exit code is 0 where nothing differs, 1 where something does, 2 where a file cannot be read.
"""

_DIFF_EPILOG = """\
how to read it:
  - only in the first    + only in the second    ~ in both, but not the same

examples:
  jaxmeta diff model-100.meta model-200.meta
  jaxmeta diff runs/before runs/after
"""

_RUN_DESCRIPTION = """\
Runs an entry point of a saved program on the restored state, with arrays for what it is fed.

A signature that updates the state, as a train step does, goes on from its own result --steps times,
and its scalar results are printed. The files that were read stay as they are.
"""

_RUN_EPILOG = """\
what can be fed:
  image=images.npy      an array from a file
  image=data.npz:x      an array of an .npz file, by its name there
  image=random          zeros, or random: normal floats, integers 0 and 1 (see --seed)
  rate=0.1              a number, in every place
  data.npz  or  random  without a name: for all that is not named; of several, the first that fits

  A name may be shortened to its end: image for batch/image. An array with one axis more than is
  wanted holds one value for each step, from the first again when they run out.

examples:
  jaxmeta run runs/digits -s predict --feed random
  jaxmeta run model-100 -s predict --feed images=new.npy --out logits.npz
  jaxmeta run model-100 -s train_step --feed batches.npz --steps 50 --save tuned/model-150
"""


_FILE_HELP = "a .meta file, a checkpoint's prefix, or a directory with a 'checkpoint' file"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 0, or 2 where something is wrong.

    ``diff`` returns 1 where something differs.
    """
    arguments = _make_parser().parse_args(argv)
    code = 0
    try:
        if arguments.command == "show":
            _show(arguments)
        elif arguments.command == "diff":
            code = _diff(arguments)
        else:
            _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # as by `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (errors.JaxmetaError, OSError) as error:
        print(f"jaxmeta: error: {error}", file=sys.stderr)
        return _EXIT_ERROR
    return code


def _make_parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "jaxmeta", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=raw
    )
    parser.add_argument("--version", action="version", version=f"jaxmeta {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    show = commands.add_parser(
        "show",
        help="print what a saved program holds",
        description=_SHOW_DESCRIPTION,
        epilog=_SHOW_EPILOG,
        formatter_class=raw,
    )
    _add_show_arguments(show)
    run = commands.add_parser(
        "run",
        help="run an entry point of a saved program",
        description=_RUN_DESCRIPTION,
        epilog=_RUN_EPILOG,
        formatter_class=raw,
    )
    _add_run_arguments(run)
    diff = commands.add_parser(
        "diff",
        help="print what differs between two saved programs",
        description=_DIFF_DESCRIPTION,
        epilog=_DIFF_EPILOG,
        formatter_class=raw,
    )
    for name in ("first", "second"):
        diff.add_argument(name, help=_FILE_HELP)
    return parser


def _add_show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help=_FILE_HELP)
    for section, text in (
        ("versions", "format, TensorFlow's version, whether a checkpoint is there"),
        ("signatures", "entry points"),
        ("variables", "names, dtypes, shapes, sizes, and which are trainable"),
        ("collections", "what else is kept under a name"),
        ("ops", "how many nodes there are of each op"),
    ):
        parser.add_argument(
            f"--{section}",
            dest="sections",
            action="append_const",
            const=section,
            help=f"only this section, or with others: {text}",
        )
    parser.add_argument(
        "--nodes",
        action="store_true",
        help="print the nodes and functions, one a line, and no more",
    )
    parser.add_argument("--all", action="store_true", help="show long lists in full")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        help="a checkpoint's prefix, its .meta file, or a directory with a 'checkpoint' file",
    )
    parser.add_argument(
        "-s", "--signature", metavar="NAME", help="the entry point; not needed if there is only one"
    )
    parser.add_argument(
        "--feed",
        action="append",
        default=[],
        metavar="[NAME=]SOURCE",
        help="what to pass for an array that is not a variable; may be given several times",
    )
    parser.add_argument(
        "--steps", type=_positive, default=1, metavar="N", help="how many times; 1 by default"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of random feeds; 0 by default"
    )
    parser.add_argument(
        "--out",
        metavar="FILE.npz",
        help="write the results there: of scalars one a step, of other arrays the last",
    )
    parser.add_argument(
        "--save", metavar="PREFIX", help="save the graph and the last state as PREFIX.meta, PREFIX/"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _show(arguments: argparse.Namespace) -> None:
    from jaxmeta.command_line import show

    if arguments.nodes:
        print(show.list_nodes(arguments.file), end="")
        return
    summary = show.summarize(arguments.file)
    if arguments.json:
        print(json.dumps(summary, indent=2))
    else:
        print(show.render(summary, arguments.sections or (), everything=arguments.all))


def _diff(arguments: argparse.Namespace) -> int:
    from jaxmeta.command_line import show
    from jaxmeta.meta_graphs import differences

    files = [show.find_meta_graph(path) for path in (arguments.first, arguments.second)]
    found = differences.diff(*files)
    if found:
        print(found)
    return _EXIT_DIFFERENT if found else 0


def _run(arguments: argparse.Namespace) -> None:
    from jaxmeta.command_line import run

    run.run_signature(
        arguments.file,
        arguments.signature,
        arguments.feed,
        steps=arguments.steps,
        seed=arguments.seed,
        out=arguments.out,
        save=arguments.save,
    )


if __name__ == "__main__":
    sys.exit(main())
