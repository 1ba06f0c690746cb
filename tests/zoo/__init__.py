"""A zoo of real programs: what people write in JAX, each at a reduced and at its real size.

A program is a function of sizes that returns a `Made`: the function to save and its arguments; see
`entry`. The modules are topics. `docs/zoo.md` lists them all with what was found of each;
`docs/make_zoo_page.py` writes it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os

# Before Equinox is imported: its checks at run time call Python, which no file holds; so they
# return NaN.
os.environ.setdefault("EQX_ON_ERROR", "nan")

from .entry import ENTRIES, Entry, Made, Size

__all__ = ["Entry", "Made", "Size", "entries"]

# Topic -> packages without which the module cannot be imported.
_TOPICS: dict[str, tuple[str, ...]] = {
    "vision": ("flax", "optax", "equinox"),
    "language": ("flax", "optax"),
    "decoding": (),
    "adaptation": ("flax", "optax"),
    "generative": ("flax", "optax"),
    "graphs": ("optax",),
    "reinforcement": ("optax",),
    "sequences": ("flax", "optax", "equinox"),
    "state_spaces": ("optax",),
    "differential_equations": ("optax",),
    "scientific": ("optax",),
    "inference": ("optax",),
    "optimizers": ("optax",),
    "learning": ("flax", "optax"),
    "linear_algebra": (),
    "algorithms": (),
    "randomness": (),
}


def entries() -> dict[str, Entry]:
    """Returns the programs that can be made here, by name: those whose libraries are installed."""
    for topic, packages in _TOPICS.items():
        if all(map(_installed, packages)):
            importlib.import_module(f".{topic}", __name__)
    return {name: entry for name, entry in ENTRIES.items() if all(map(_installed, entry.requires))}


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
