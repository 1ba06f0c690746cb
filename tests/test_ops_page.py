"""docs/ops.md is the op table of today."""

from __future__ import annotations

import pathlib
import re

from jaxmeta.ops import _definition, _not_lowered

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "ops.md"


def test_page_lists_each_primitive_once():
    listed = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(), flags=re.MULTILINE)
    refused = set(_not_lowered.NOT_LOWERED) - set(_definition.LOWERINGS)
    assert sorted(listed) == sorted([*_definition.LOWERINGS, *refused]), "run docs/make_ops_page.py"
