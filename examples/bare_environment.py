"""Runs a script in an environment that holds some distributions, what they require, and no more."""

from __future__ import annotations

import collections
import os
import pathlib
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata

from packaging import requirements

import jaxmeta

PYPROJECT = pathlib.Path(__file__).parents[1] / "pyproject.toml"
ACCELERATORS = ("jax-cuda", "jax-rocm", "libtpu")  # plugins of jaxlib's, if there are any


def run_script(script: pathlib.Path, *arguments: str, extra: Sequence[str] = ()) -> None:
    """Runs a copy of a script, where only jaxmeta, its dependencies and ``extra`` can be imported.

    Args:
        script: one file; those beside it are not there for it.
        *arguments: its command line.
        extra: names of distributions that it needs besides.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        here = pathlib.Path(temporary)
        (here / "site").mkdir()
        _link_packages(here / "site", [*_dependencies_of_jaxmeta(), *extra])
        (here / script.name).write_text(script.read_text())
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        environment["PYTHONPATH"] = str(here / "site")
        # -S: no site-packages, no .pth files. -s: none of the user's. -P: not the script's folder.
        command = [sys.executable, "-S", "-s", "-P", str(here / script.name), *arguments]
        subprocess.run(command, env=environment, cwd=here, check=True)


def _dependencies_of_jaxmeta() -> list[str]:
    """Returns the names of jaxmeta's runtime dependencies, and of the accelerators' plugins."""
    lines = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    installed = {d.metadata["Name"].replace("_", "-").lower() for d in metadata.distributions()}
    plugins = [name for name in installed if name.startswith(ACCELERATORS)]
    return [requirements.Requirement(line).name for line in lines] + plugins


def _link_packages(site: pathlib.Path, names: Iterable[str]) -> None:
    """Fills a directory with links to jaxmeta and to the packages of some distributions."""
    (site / "jaxmeta").symlink_to(pathlib.Path(jaxmeta.__file__).parent)
    owners = collections.Counter(
        top
        for distribution in metadata.distributions()
        for top in {file.parts[0] for file in distribution.files or ()}
    )
    for distribution in _with_requirements(names):
        for file in distribution.files or ():
            # `google` and `orbax` are shared by distributions; of these link one level below.
            depth = 2 if owners[file.parts[0]] > 1 else 1
            link = site.joinpath(*file.parts[:depth])
            if ".." in file.parts or file.parts[0] == "__pycache__" or link.exists():
                continue
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(pathlib.Path(*distribution.locate_file("").parts, *file.parts[:depth]))


def _with_requirements(names: Iterable[str]) -> Iterator[metadata.Distribution]:
    """Yields distributions and all that they require, each once."""
    waiting, seen = list(names), set()
    while waiting:
        name = waiting.pop().replace("_", "-").lower()
        if name in seen:
            continue
        seen.add(name)
        distribution = metadata.distribution(name)
        yield distribution
        for line in distribution.requires or ():
            requirement = requirements.Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
