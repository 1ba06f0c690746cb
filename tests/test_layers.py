"""The arrows between the modules of the package: imports go one way only."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

import jaxmeta

ROOT = pathlib.Path(jaxmeta.__file__).parent

# A module imports from the rows above its own: never from below, never from beside.
ROWS = (
    (
        "_proto",
        "checkpoint.atomic",
        "checkpoint.crc32c",
        "command_line",
        "control_dependencies",
        "default_graphs",
        "eqn_params",
        "errors",
        "ops._not_lowered",
        "pausing",
        "sharded_functions",
        "variable_store",
    ),
    (
        "checkpoint.background",
        "checkpoint.coding",
        "checkpoint.layout",
        "checkpoint.retention",
        "checkpoint.slices",
        "collection_registry",
        "coordinator",
        "default_sessions",
        "dimensions",
        "dtypes",
        "meta_graph_file",
        "naming",
        "op_defs",
        "ordering",
        "queue_resources",
        "renaming",
        "xla_attrs",
    ),
    (
        "arguments",
        "checkpoint.orbax_reader",
        "checkpoint.snappy",
        "checkpoint.state",
        "checkpoint.stored",
        "control_flow_contexts",
        "function_library",
        "graph_transforms",
        "jaxprs",
        "values",
    ),
    (
        "binding",
        "checkpoint.orbax",
        "checkpoint.table",
        "custom_calls",
        "discharging",
        "nodes",
        "shardings",
        "trees",
    ),
    (
        "checkpoint",
        "checkpoint.slice_table_reader",
        "checkpoint.tensor_bundle_reader",
        "dimension_nodes",
        "handles",
        "ops._definition",
        "ops._one_device",
        "ops._operands",
        "sizes",
        "specs",
    ),
    (
        "checkpoint.reader",
        "checkpoint.tensor_bundle",
        "elements",
        "ops._computation",
        "ops._indexing",
        "ops._matrices",
        "ops._pointwise",
        "plans",
    ),
    (
        "checkpoint.restoring",
        "compiling",
        "executor",
        "graph",
        "ops._handles",
        "ops._keys",
        "ops._window",
    ),
    (
        "elementary",
        "fetches",
        "graph_def_checks",
        "inlining",
        "ops.<family>",
        "printing",
        "saveables",
        "segments",
        "shape_inference",
        "staging",
    ),
    (
        "node_differences",
        "operators",
        "ops",
        "saver_nodes",
        "trace",
    ),
    (
        "calling",
        "signature_nodes",
    ),
    (
        "copying",
        "gradients",
        "signature_defs",
        "variables",
    ),
    (
        "editing",
        "freezing",
        "minimizing",
    ),
    ("building",),
    (
        "collection_defs",
        "construction",
        "event_files",
        "input_maps",
        "program",
        "queue_runner",
        "queues",
    ),
    (
        "graph_def_import",
        "saved_values",
        "session",
    ),
    (
        "meta_graph_import",
        "saver_arguments",
    ),
    ("meta_graph_export",),
    ("meta_graph",),
    (
        "differences",
        "loading",
    ),
    ("saver",),
    (
        "",
        "command_line.<command>",
    ),
    ("__main__",),
)
ROW_OF = {name: index for index, names in enumerate(ROWS) for name in names}
assert len(ROW_OF) == sum(map(len, ROWS)), "a module stands in two rows"
# What a checkpoint knows: names and arrays, no graphs.
CHECKPOINT_SEES = {"errors", "_proto", "dtypes", "naming", "values"}


def module_name(path: pathlib.Path) -> str:
    """Returns the name of a file's module below the package: ``ops.conv``; empty for jaxmeta."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_name(path): path
    for path in sorted(ROOT.rglob("*.py"))
    if "_proto" not in path.relative_to(ROOT).parts
}


def imports(path: pathlib.Path) -> set[str]:
    """Returns the full names of the modules that a file imports, at its top or in a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if is_module(full) else node.module)
    return found


def is_module(full_name: str) -> bool:
    place = ROOT.parent.joinpath(*full_name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def own_imports(path: pathlib.Path) -> set[str]:
    """Returns the modules of the package that a file imports."""
    return {
        "_proto" if name.startswith("jaxmeta._proto") else name.removeprefix("jaxmeta").lstrip(".")
        for name in imports(path)
        if name.split(".")[0] == "jaxmeta"
    }


def row(module: str) -> int:
    if module not in ROW_OF and "." in module:
        package = module.split(".")[0]
        module = f"{package}.<{'family' if package == 'ops' else 'command'}>"
    assert module in ROW_OF, f"{module!r} has no place in the rows above"
    return ROW_OF[module]


@pytest.mark.parametrize("module", FILES)
def test_imports_go_up_only(module):
    bad = [other for other in own_imports(FILES[module]) if row(other) >= row(module)]
    assert bad == []


def test_every_row_is_there():
    for name in ROW_OF:
        if "<" not in name:
            assert is_module(f"jaxmeta.{name}".rstrip("."))


def test_checkpoints_know_no_graphs():
    for module, path in FILES.items():
        if module.startswith("checkpoint"):
            others = {name for name in own_imports(path) if not name.startswith("checkpoint")}
            assert others <= CHECKPOINT_SEES, module


def test_only_checkpoints_import_orbax_and_tensorstore():
    for module, path in FILES.items():
        roots = {name.split(".")[0] for name in imports(path)}
        if not module.startswith("checkpoint"):
            assert not roots & {"orbax", "tensorstore"}, module


@pytest.mark.parametrize("module", FILES)
def test_neither_private_jax_nor_tensorflow_is_imported(module):
    names = imports(FILES[module])
    assert not [name for name in names if name.startswith(("jax._src", "jaxlib"))]
    assert "tensorflow" not in {name.split(".")[0] for name in names}
    assert "jax._src" not in FILES[module].read_text().replace('"jax._src"', "")


def test_nothing_is_unpickled_or_evaluated():
    for module, path in FILES.items():
        tree = ast.parse(path.read_text())
        assert not {name.split(".")[0] for name in imports(path)} & {"pickle", "dill", "marshal"}
        called = {
            node.func.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not called & {"eval", "exec", "compile", "__import__"}, module


def test_importing_the_package_imports_no_other_library_of_models():
    script = (
        "import sys, jaxmeta\n"
        "names = {name.split('.')[0] for name in sys.modules}\n"
        "print(sorted(names & {'tensorflow', 'orbax', 'flax', 'optax', 'equinox', 'tensorstore'}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "[]"


def test_importing_the_package_starts_no_device():
    script = (
        "import jax, jaxmeta\n"
        "from jax.extend import backend\n"
        "jax.config.update('jax_platforms', 'none_of_these')\n"
        "try:\n    backend.get_backend()\nexcept RuntimeError:\n    print('not started')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT.parent, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "not started"
