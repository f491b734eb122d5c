# Both `make demo` and `make test` set up a virtual environment first; nothing else is needed
# than Python 3.11 or newer with venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
MODEL := models/fashion_mnist

.PHONY: demo test test-all lint bench clean

demo: $(READY) ## Optimize a real trained model and show what came of it
	mkdir -p demo-output
	$(BIN)/onnxopt optimize $(MODEL)/fashion_mnist.onnx demo-output/fashion_mnist.onnx \
	    --data $(MODEL)/calibration.npz --report demo-output/report.json
	$(BIN)/python $(MODEL)/evaluate.py $(MODEL)/fashion_mnist.onnx demo-output/fashion_mnist.onnx

test: $(READY_DEV) ## The tests that take minutes, not hours
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: $(READY_DEV) ## All tests
	$(BIN)/python -m pytest -n 2

lint: $(READY_DEV) ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY_DEV) ## Side by side with peers; see docs/benchmarks.md. DATA=folder of samples
	$(BIN)/python -m pip install --quiet -r benchmarks/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -r benchmarks/zoo-requirements.txt
	$(BIN)/python -m benchmarks.run $(DATA) $(BENCH)

clean:
	rm -rf $(VENV) demo-output build *.egg-info

$(READY): pyproject.toml
	# Debian and Ubuntu keep venv in a package of its own.
	$(PYTHON) -m venv $(VENV) || { apt-get update -qq && apt-get install -y -qq python3-venv && $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(READY_DEV): $(READY) requirements-dev.txt
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@
