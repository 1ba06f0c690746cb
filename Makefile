# Every target sets up what it needs: python3 (3.11 or newer) with pip is all there has to be.
# Choose another interpreter with `make test PYTHON=python3.12`.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test test-second lint bench zoo clean

help:
	@echo "make demo         train, save, resume and plot the digits example"
	@echo "make test         run all tests, with TensorFlow as the oracle"
	@echo "make test-second  run the short tests on a second Python, if the machine has one"
	@echo "make lint         formatting, lint, types, generated code"
	@echo "make bench        run the benchmarks"
	@echo "make zoo          check all programs of the zoo at real sizes, and write docs/zoo.md"
	@echo "make clean        remove environments and caches"

.venv/.created:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "jaxmeta needs Python 3.11 or newer; this is " + sys.version)'
	$(PYTHON) -m venv --clear .venv
	touch $@

# One stamp for each set of extras; a changed pyproject.toml installs anew.
.venv/.installed-test: .venv/.created pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test,tensorflow]'
	touch $@

.venv/.installed-examples: .venv/.created pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[examples]'
	touch $@

demo: .venv/.installed-examples
	$(BIN)/python examples/digits.py

test: .venv/.installed-test
	$(BIN)/python -m pytest -n auto

lint: .venv/.installed-test
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	PYTHON=$(PYTHON) protos/generate.sh --check

bench: .venv/.installed-test .venv/.installed-examples
	$(BIN)/python benchmarks/run_all.py

zoo: export JAXMETA_OTHER_PYTHON := $(wildcard $(CURDIR)/.venv-second/bin/python)
zoo: .venv/.installed-test
	PYTHONPATH=tests $(BIN)/python docs/make_zoo_page.py
	[ ! -x .venv-second/bin/python ] || PYTHONPATH=tests JAXMETA_OTHER_PYTHON= .venv-second/bin/python docs/make_zoo_page.py --dry

test-second: .venv/.installed-test
	@.ci/test_second

clean:
	rm -rf .venv .venv-second .venv-protos build dist *.egg-info
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
