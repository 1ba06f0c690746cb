"""The benchmarks run and what they assert holds, at their smallest sizes; no times are judged."""

from __future__ import annotations

import importlib
import importlib.util
import pathlib

import pytest

pytest.importorskip("flax")
pytest.importorskip("optax")

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"
TINY_MLP = {"batch": 4, "inputs": 12, "sizes": [8, 8, 10]}


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a script; whatever asks for a package is told that TensorFlow is not there."""

    def load(name):
        timing = importlib.import_module("timing")
        monkeypatch.setattr(timing, "has_package", lambda package: package != "tensorflow")
        return importlib.import_module(name)

    return load


@pytest.fixture
def small_models(monkeypatch):
    """Makes the MLP of the benchmarks tiny."""
    models = importlib.import_module("models")
    original = models.mlp
    monkeypatch.setitem(models.MODELS, "mlp", lambda: original(**TINY_MLP))


def test_interleave_gives_each_variant_a_sample_a_round(benchmark):
    timing = benchmark("timing")
    assert timing.interleave({"a": lambda: 1, "b": lambda: 2}, 3) == {"a": [1] * 3, "b": [2] * 3}


def test_ratio_is_the_median_of_the_pairs(benchmark):
    assert benchmark("timing").ratio([1.0, 4.0, 9.0], [1.0, 2.0, 3.0]) == 2.0


def test_report_writes_tables_and_says_which_targets_are_reached(benchmark, tmp_path):
    reporting = benchmark("reporting")
    report = reporting.Report("name", "Question")
    report.table("Rows", [{"a": 1, "b": 0.25}, {"a": 2000, "c": "text"}])
    report.target("fast enough", 0.5, at_most=1.0)
    report.target("small enough", 2.0, at_most=1.0)
    report.write(tmp_path, lambda figure: reporting.bars(figure.subplots(), ["x"], {"s": [1.0]}))
    page = (tmp_path / "name.md").read_text()
    assert "| 2,000 | -    | text |" in page
    assert [line.split("|")[-2].strip() for line in page.splitlines() if "enough" in line] == [
        "yes",
        "no",
    ]


@pytest.mark.parametrize("name", ["mlp", "chain:20"])
def test_imported_program_lowers_as_the_original(benchmark, small_models, tmp_path, name):
    script = benchmark("import_export")
    path = str(tmp_path / "program.meta")
    exported = script.export_program(name, path)
    assert exported["sha"] == script.export_program(name, path)["sha"]
    original, imported = script.trace_original(name), script.trace_imported(path)
    assert original["fingerprint"] == imported["fingerprint"]


def test_program_of_the_zoo_is_measured(benchmark, tmp_path):
    benchmark("reporting")
    # By its path: the zoo itself, in tests/, has the same name.
    spec = importlib.util.spec_from_file_location("benchmark_of_the_zoo", BENCHMARKS / "zoo.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    row = script.measure("poisson_solver", "reduced", rounds=1, folder=str(tmp_path))
    assert row["nodes"] > 0
    assert row["ratio"] > 0


def test_chain_of_nodes_is_exported_and_imported(benchmark, tmp_path):
    script = benchmark("import_export")
    path = str(tmp_path / "chain.meta")
    assert script.export_chain(30, path)["bytes"] > 0
    assert script.import_chain(30, path)["cpu"].keys() == {"parse", "import"}


@pytest.mark.needs_tf
def test_tensorflow_imports_the_chain_of_nodes(tensorflow, benchmark, tmp_path):
    script = benchmark("import_export")
    path = str(tmp_path / "chain.meta")
    script.export_chain(30, path)
    assert script.tensorflow_chain(30, path)["cpu"].keys() == {"import", "export"}


@pytest.mark.parametrize("checkpoint_format", ["orbax", "tensor_bundle"])
def test_memory_of_saving_and_loading_is_measured(benchmark, tmp_path, checkpoint_format):
    script = benchmark("memory")
    saved = script.save_state(8, str(tmp_path), checkpoint_format)
    loaded = script.load_program(8, f"{tmp_path}/model")
    assert saved.keys() == loaded.keys() == {"ratio"}


def test_import_of_a_package_is_measured(benchmark):
    row = benchmark("importing").measure("jaxmeta", rounds=1)
    assert row["/ jax"] > 0


def test_calls_of_all_kinds_do_the_same(benchmark, tmp_path):
    script = benchmark("dispatch")
    path = script.save_program(3, str(tmp_path))
    row = script.summarize(3, script.sample(3, rounds=1, path=path, backwards=True))
    assert {"leaves", "imported/jax.jit", "Session.run us"} <= row.keys()


def test_resumption_reaches_the_native_state(benchmark, small_models, tmp_path):
    script = benchmark("resume")
    folder = str(tmp_path)
    script.save_model("mlp", folder)
    native = script.resume_native("mlp", folder, cache=None)
    imported = script.resume_imported("mlp", folder, cache=None)
    assert (native["loss"], native["state"]) == (imported["loss"], imported["state"])
    assert set(script._LAPS) == native["wall"].keys() == imported["wall"].keys()


def test_imported_step_is_the_same_program_and_gives_the_same_bits(benchmark):
    script = benchmark("step_time")
    steps = script.make_steps("mlp", TINY_MLP)
    script.assert_same_results(steps)
    assert script.time_block(steps["imported"], 1) > (0.0, 0.0)
