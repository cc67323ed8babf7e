PYTHON ?= python3
SHARED ?= ../shared
WORKERS ?= 2
TESTS ?= tests
DEVICE ?= cuda
BENCHMARKS ?= $(wildcard benchmarks/bench_*.py)
MEASURED := build/benchmarks/$(shell git rev-parse --short HEAD 2>/dev/null)
PHOTOGRAPHS ?= $(SHARED)/photographs
PRESET ?= default
INITIAL ?= $(wildcard nvf_fast/weights/$(PRESET))
RUN ?= runs/$(PRESET)
EVALUATED ?= synthetic-v2 --out $(RUN)/report
LOADERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) - 1)
ifeq ($(PRESET),default)
REPLAY ?= --replay.uses 32 --optimisation.batch 256 --optimisation.parts 16 --optimisation.steps 36000 \
	--optimisation.learning-rate 1e-3 --optimisation.warmup-steps 300 --log-every 200 --save-every 6000
endif

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: help demo test lint wheel docs gallery bench searches accuracy readme gpu gpu-tests gpu-sanitize gpu-bench gpu-train gpu-there clean

help:
	@echo "make demo    install into .venv and run the model on the included image"
	@echo "make test    install the development tools and run every test"
	@echo "make lint    ruff and mypy"
	@echo "make wheel   build the wheel and check it in a separate environment"
	@echo "make docs    build the documentation site into build/site; begin with index.html"
	@echo "make gallery  draw the images of docs/gallery/ again"
	@echo "make bench   measure speed here, into benchmarks/results/, README.md and docs/"
	@echo "make searches  compare the searches with the dense grid, into benchmarks/results/"
	@echo "make accuracy  measure the default network, into its config.json and benchmarks/results/; PHOTOGRAPHS=DIR,"
	@echo "             and further options of benchmarks/default_network.py in EVAL=..."
	@echo "make readme  fill the figures of README.md and docs/ from benchmarks/results/"
	@echo "make gpu     on a CUDA device, with the installed $(PYTHON): gpu-tests, gpu-sanitize and gpu-bench; make -k gpu"
	@echo "             continues after a failure, DEVICE=cpu tries it without a GPU, BENCHMARKS=FILE runs one file of benchmarks"
	@echo "make gpu-train  train the default network there from its committed weights, or the paper's with PRESET=paper,"
	@echo "             or resume the run in RUN=DIR; INITIAL=DIR starts from a checkpoint, LOADERS=N processes draw views,"
	@echo "             REPLAY=... reuses them; TRAIN=... and EVAL=... are further options of nvf-fast train and"
	@echo "             nvf-fast eval synthetic-v2"
	@echo "make clean   remove the environment, build outputs and caches"

demo: $(VENV)/run
	$(BIN)/nvf-fast demo

test: $(VENV)/dev
	$(BIN)/python -m pytest -n $(WORKERS) -p no:benchmark --shared $(SHARED) $(TESTS)

lint: $(VENV)/dev
	$(BIN)/ruff check .
	mkdir -p build/mypy/nvf_fast && ln -sfn ../../../kernels build/mypy/nvf_fast/kernels
	$(BIN)/mypy

wheel: $(VENV)/dev
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	$(BIN)/python tests/check_wheel.py dist/*.whl

docs: $(VENV)/dev
	$(BIN)/python -W "ignore:Error parsing type annotation" docs/site/build.py build/site

gallery: $(VENV)/dev
	$(BIN)/python docs/gallery.py

bench: $(VENV)/dev
	mkdir -p build
	$(BIN)/python benchmarks/ceilings.py
	$(BIN)/python -m pytest benchmarks --benchmark-json build/benchmarks.json
	$(BIN)/python benchmarks/tables.py build/benchmarks.json
	$(BIN)/python benchmarks/readme.py

searches: $(VENV)/dev
	$(BIN)/python -m benchmarks.searches

accuracy: $(VENV)/dev
	$(BIN)/python -m benchmarks.default_network --photographs $(PHOTOGRAPHS) $(EVAL)

readme: $(VENV)/dev
	$(BIN)/python benchmarks/readme.py

gpu: gpu-tests gpu-sanitize gpu-bench

gpu-tests: gpu-there
	$(PYTHON) -m pytest -p no:benchmark --shared $(SHARED) -m cuda $(TESTS)
	$(PYTHON) -m pytest -p no:benchmark --shared $(SHARED) -m "not cuda" -n $(WORKERS) $(TESTS)

gpu-sanitize: gpu-there
	$(PYTHON) tests/sanitize.py || [ $$? -eq 2 ]  # goes on where there is no compute-sanitizer

# Each file has a process, so that a benchmark that ends it leaves the others. Files of earlier calls are joined.
gpu-bench: gpu-there
	mkdir -p $(MEASURED)
	[ $(DEVICE) = cpu ] || $(PYTHON) -m nvf_fast tune released
	$(PYTHON) benchmarks/ceilings.py
	$(PYTHON) benchmarks/floors.py
	failed=0; for file in $(BENCHMARKS); do \
		json="$(MEASURED)/$$(basename "$$file").json"; rm -f "$$json"; \
		$(PYTHON) -m pytest "$$file" --benchmark-json "$$json" || failed=1; \
	done; $(PYTHON) benchmarks/tables.py $(MEASURED)/*.json && $(PYTHON) benchmarks/readme.py && exit $$failed

gpu-train: gpu-there
	$(PYTHON) -m nvf_fast train $(PRESET) --device $(DEVICE) --workers $(LOADERS) --out $(RUN) \
		$(addprefix --initial ,$(INITIAL)) $(REPLAY) $(TRAIN)
	$(PYTHON) benchmarks/curves.py $(RUN) --out $(RUN)/curves.png
	$(PYTHON) -m nvf_fast eval $(EVALUATED) --device $(DEVICE) --checkpoint $(RUN)/checkpoint $(EVAL)

gpu-there:
	@$(PYTHON) tests/check_packages.py $(DEVICE)

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
