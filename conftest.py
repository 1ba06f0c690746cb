"""What the tests and the examples in docstrings share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def own_default_graph():
    """Gives each test, and each example, a default graph of its own."""
    import jaxmeta

    jaxmeta.reset_default_graph()
