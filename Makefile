PYTHON ?= python3
SHARED ?= ../shared
WORKERS ?= 2
TESTS ?= tests

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: help demo test lint wheel bench searches accuracy readme gpu clean

help:
	@echo "make demo    install into .venv and run the model on the picture that comes with it"
	@echo "make test    install the development tools and run every test"
	@echo "make lint    ruff and mypy"
	@echo "make wheel   build the wheel and check it in an environment of its own"
	@echo "make bench   measure speed here, into benchmarks/results/ and the README"
	@echo "make searches  compare the searches with the dense grid, into benchmarks/results/"
	@echo "make accuracy  measure the embedded model on synthetic pictures, into its config.json and benchmarks/results/"
	@echo "make readme  fill the README's tables from benchmarks/results/"
	@echo "make gpu     tests and speed on a CUDA device, with $(PYTHON) as it is"
	@echo "make clean   remove everything made here"

demo: $(VENV)/run
	$(BIN)/nvf-fast demo

test: $(VENV)/dev
	$(BIN)/python -m pytest -n $(WORKERS) -p no:benchmark --shared $(SHARED) $(TESTS)

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/mypy

wheel: $(VENV)/dev
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	$(BIN)/python tests/check_wheel.py dist/*.whl

bench: $(VENV)/dev
	mkdir -p build
	$(BIN)/python -m pytest benchmarks --benchmark-json build/benchmarks.json
	$(BIN)/python benchmarks/readme.py build/benchmarks.json

searches: $(VENV)/dev
	$(BIN)/python -m benchmarks.searches

accuracy: $(VENV)/dev
	$(BIN)/nvf-fast eval synthetic --record --out benchmarks/results/accuracy.json

readme: $(VENV)/dev
	$(BIN)/python benchmarks/readme.py

gpu:
	@$(PYTHON) -c "import sys, torch; torch.cuda.is_available() or sys.exit('make gpu needs a CUDA device')"
	$(PYTHON) -m pytest -p no:benchmark --shared $(SHARED) $(TESTS)
	for network in small released; do \
		$(PYTHON) -c "from nvf_fast.cli.main import main; main(['tune', '$$network'])" || exit 1; done
	$(PYTHON) benchmarks/floors.py
	mkdir -p build
	$(PYTHON) -m pytest benchmarks --benchmark-json build/benchmarks.json
	$(PYTHON) benchmarks/readme.py build/benchmarks.json

clean:
	rm -rf $(VENV) build dist nvf_demo.png *.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/run: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); the first time this fetches torch and takes minutes"
	$(INSTALL) .
	@touch $@

$(VENV)/dev: $(VENV)/run
	@echo "installing the development tools into $(VENV)"
	$(INSTALL) ".[dev]"
	@touch $@
