"""Real train steps to test with: model x library x optimizer, see `Program`.

Each module holds the programs of one library in `PROGRAMS`; `transforms` holds programs in plain
JAX that exercise its transformations and control flow. `python -m programs`, run in `tests/`,
runs them all and prints a table.
"""

from __future__ import annotations

import importlib
import importlib.util

from .program import Program

__all__ = ["Program", "all_programs", "get"]

# Module with PROGRAMS -> the package without which it cannot be imported.
_MODULES = {
    "plain": None,
    "transforms": None,
    "linen": "flax",
    "nnx": "flax",
    "eqx": "equinox",
}


def all_programs() -> dict[str, Program]:
    """Returns the programs that can be made here, by name: those whose libraries are installed."""
    programs: dict[str, Program] = {}
    for module, package in _MODULES.items():
        if package is not None and not _installed(package):
            continue
        for program in importlib.import_module(f".{module}", __name__).PROGRAMS:
            if program.name in programs:
                raise ValueError(f"two programs are called {program.name!r}")
            if all(_installed(name) for name in program.requires):
                programs[program.name] = program
    return programs


def get(name: str) -> Program:
    """Returns the program called `name`, importing only the library that it is written in."""
    module = name.split("_", 1)[0]
    if module in _MODULES:
        for program in importlib.import_module(f".{module}", __name__).PROGRAMS:
            if program.name == name:
                return program
    raise KeyError(f"no program is called {name!r}; there are {sorted(all_programs())}")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
