"""Runs all benchmarks, one after the other; takes --quick, or --full for those that have it.

A script fails where what it asserts before it times does not hold; a target that is missed is
reported in its table only. The others run all the same.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys

_SCRIPTS = (
    "import_export",
    "dispatch",
    "resume",
    "step_time",
    "checkpoint",
    "loops",
    "memory",
    "importing",
    "zoo",
)
_TWO_SIZES = ("checkpoint",)  # have no --full


def main(options: list[str]) -> int:
    """Runs each script in a process of its own; returns 1 where one failed, else 0."""
    folder = pathlib.Path(__file__).parent
    failed = []
    for name in _SCRIPTS:
        print(f"== {name}", flush=True)
        taken = [option for option in options if name not in _TWO_SIZES or option != "--full"]
        if subprocess.run([sys.executable, folder / f"{name}.py", *taken]).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
