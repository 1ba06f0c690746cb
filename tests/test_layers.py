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
        "checkpoint.batches",
        "checkpoint.crc32c",
        "command_line",
        "errors",
        "execution",
        "execution.variable_store",
        "graphs",
        "graphs.control_dependencies",
        "graphs.default_graphs",
        "meta_graphs",
        "ops._dataflow_values",
        "ops._not_lowered",
        "ops._png",
        "ops._reflectors",
        "ops._rounding",
        "ops._shared_resources",
        "ops._sparse",
        "pausing",
        "saving",
        "tracing",
        "tracing.eqn_params",
        "tracing.ref_places",
        "tracing.sharded_functions",
    ),
    (
        "checkpoint.background",
        "checkpoint.coding",
        "checkpoint.layout",
        "checkpoint.retention",
        "checkpoint.slices",
        "dtypes",
        "execution.coordinator",
        "execution.files",
        "execution.ordering",
        "execution.table_resources",
        "graphs.default_sessions",
        "graphs.renaming",
        "meta_graphs.collection_registry",
        "naming",
        "op_defs",
        "ops._compression",
        "ops._handles",
        "ops._philox",
        "ops._string_arrays",
        "tracing.dimensions",
        "tracing.meshes",
        "tree_keys",
        "xla_attrs",
    ),
    (
        "checkpoint.snappy",
        "checkpoint.state",
        "checkpoint.stored",
        "execution.arguments",
        "execution.queue_resources",
        "graphs.function_library",
        "meta_graphs.control_flow_contexts",
        "meta_graphs.graph_transforms",
        "meta_graphs.meta_graph_file",
        "ops._examples",
        "ops._tensor_lists",
        "tracing.jaxprs",
        "tracing.unifying",
        "values",
    ),
    (
        "checkpoint.orbax_reader",
        "checkpoint.table",
        "execution.reader_resources",
        "graphs.handles",
        "graphs.nodes",
        "ops._cells",
        "ops._feature_lists",
        "ops._list_elements",
        "ops._philox_distributions",
        "shardings",
        "tracing.binding",
        "tracing.custom_calls",
        "tracing.static_arguments",
        "tracing.trip_counts",
        "tracing.vmap_rules",
        "trees",
    ),
    (
        "checkpoint.orbax",
        "checkpoint.slice_table",
        "checkpoint.slice_table_reader",
        "checkpoint.tensor_bundle_reader",
        "graphs.variable_handles",
        "ops._kernels",
        "ops._loops",
        "ops._one_device",
        "ops._operands",
        "ops._philox_rejection",
        "original_classes",
        "specs",
        "state_leaves",
        "tracing.dimension_nodes",
        "tracing.discharging",
        "tracing.sizes",
    ),
    (
        "checkpoint",
        "checkpoint.reader",
        "checkpoint.tensor_bundle",
        "execution.plans",
        "graphs.elements",
        "ops._branches",
        "ops._definition",
        "ops._gradients",
    ),
    (
        "checkpoint.restoring",
        "execution.compiling",
        "execution.frames",
        "execution.node_kernels",
        "execution.structured_steps",
        "graphs.graph",
        "ops._computation",
        "ops._derivative_rules",
        "ops._indexing",
        "ops._matrices",
        "ops._pointwise",
        "ops._scales",
    ),
    (
        "execution.feed_values",
        "execution.fetches",
        "execution.functionalizing",
        "execution.host_steps",
        "graphs.elementary",
        "graphs.inlining",
        "graphs.printing",
        "graphs.regions",
        "graphs.staging",
        "meta_graphs.graph_def_checks",
        "ops._keys",
        "ops._window",
        "saving.saveables",
        "state_values",
        "tracing.staged_functions",
    ),
    (
        "execution.feed_checks",
        "execution.planning",
        "graphs.operators",
        "meta_graphs.node_differences",
        "ops._convolution",
        "saving.saver_nodes",
    ),
    (
        "execution.executor",
        "meta_graphs.output_shapes",
        "ops.<family>",
    ),
    (
        "execution.segments",
        "graphs.same_sizes",
        "graphs.shape_inference",
        "ops",
        "tracing.trace",
    ),
    (
        "execution.dataflow",
        "graphs.calling",
        "tracing.signature_nodes",
    ),
    (
        "execution.speculating",
        "graphs.copying",
        "graphs.differentiating",
        "graphs.indexing",
        "graphs.variables",
        "meta_graphs.signature_defs",
    ),
    (
        "graphs.editing",
        "graphs.minimizing",
        "meta_graphs.freezing",
    ),
    ("graphs.building",),
    (
        "event_files",
        "execution.queue_runner",
        "execution.queues",
        "graphs.construction",
        "meta_graphs.collection_defs",
        "meta_graphs.input_maps",
        "program",
        "saving.saved_values",
    ),
    (
        "execution.session",
        "meta_graphs.graph_def_import",
        "summary",
    ),
    (
        "meta_graphs.meta_graph_import",
        "saving.saved_tables",
        "saving.saver_arguments",
    ),
    ("meta_graphs.meta_graph_export",),
    ("meta_graphs.meta_graph",),
    (
        "meta_graphs.differences",
        "saving.loading",
    ),
    ("saving.saver",),
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
