# Two commands set everything up on a fresh machine: `make demo` and `make test`.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PHOTOS ?= tiny/samples

.PHONY: demo test lint bench full-size clean

demo: $(READY)
	$(BIN)/python export/build_engine.py tiny/disparity-d --resolution 256x256 --output engines/demo --overwrite
	$(BIN)/python export/build_engine.py tiny/normal-d --resolution 256x256 --output engines/demo-normal --overwrite
	$(BIN)/python -m runtime verify engines/demo
	$(BIN)/python -m runtime predict engines/demo tiny/samples --output out/demo
	$(BIN)/python -m runtime predict engines/demo-normal tiny/samples --output out/demo-normal
	@echo "Look at out/demo/*.png and out/demo-normal/*.png"

# Most of the time goes to tracing, which is one thread's work: two processes of one thread each are faster than one of two.
test: $(READY) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: demo
	$(BIN)/python -m benchmarks.parity $(PHOTOS)
	$(BIN)/python -m benchmarks.cold_start
	$(BIN)/python -m benchmarks.group_norm

full-size: $(READY)
	$(BIN)/python -m benchmarks.full_size

# Exact versions come from constraints.txt; a changed file there or in pyproject.toml installs again.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[cpu,openvino,rtx,export,dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) out engines/demo engines/demo-normal
