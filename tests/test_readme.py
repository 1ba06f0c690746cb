"""The code in README.md runs, its links lead somewhere, and docs/format.md is complete."""

from __future__ import annotations

import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
WRITE, RESUME, IN_TENSORFLOW = BLOCKS


def run_block(block):
    """Runs a block as a program of its own and returns its variables."""
    variables: dict[str, object] = {"__name__": "__main__"}
    exec(compile(block, "README.md", "exec"), variables)
    return variables


def test_the_code_saves_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = run_block(WRITE)
    resumed = run_block(RESUME)
    expected, loss = written["train_step"](written["state"], written["batch"])
    np.testing.assert_array_equal(resumed["state"]["w"], expected["w"])
    assert int(resumed["state"]["step"]) == 1
    assert resumed["loss"] == loss
    assert resumed["slope"].shape == (8, 3)
    assert jnp.any(resumed["slope"] != 0)


@pytest.mark.needs_tf
def test_the_code_for_tensorflow_runs(tmp_path, monkeypatch, tensorflow):
    monkeypatch.chdir(tmp_path)
    run_block(WRITE)
    run_block(IN_TENSORFLOW)
    assert (tmp_path / "runs/line/from_tensorflow.index").exists()


@pytest.mark.parametrize("document", ["README.md", "docs/format.md", "docs/tutorial.md"])
def test_links_lead_somewhere(document):
    path = ROOT / document
    prose = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)\)", prose):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_the_picture_is_small():
    assert (ROOT / "docs" / "digits.png").stat().st_size < 200_000


def test_the_readme_names_every_module():
    map_of_code = README.split("## How it works")[1].split("## The format")[0]
    for path in (ROOT / "jaxmeta").iterdir():
        name = path.name.removesuffix(".py")
        is_module = path.suffix == ".py" or (path / "__init__.py").exists()
        if is_module and name != "__init__":
            assert re.search(rf"`{name}/?`", map_of_code), f"README.md: no line for {name}"


def test_the_format_lists_every_attr_of_ours():
    listed = (ROOT / "docs" / "format.md").read_text()
    written = {
        attr
        for path in (ROOT / "jaxmeta").rglob("*.py")
        for attr in re.findall(r"\b_jax_[a-z_]*[a-z]\b", path.read_text())
    }
    assert sorted(attr for attr in written if f"`{attr}`" not in listed) == []
