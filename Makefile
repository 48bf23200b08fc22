# Two commands set everything up on a fresh machine: `make demo` and `make test`.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TOOLS := .venv-tools
PHOTOS ?= tiny/samples

.PHONY: demo test lint docs triton bench device rows soak versions fuzz full-size lock audit clean

# On Windows, without make: `py -m tools.demo`.
demo:
	$(PYTHON) -m tools.demo --venv $(VENV)

# Most of the time goes to tracing, which is one thread's work: two processes of one thread each are faster than one of two.
# In the order of tests/conftest.py: by their number of tests the files that take longest, which have few, would come last.
test: $(READY) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site of docs/ in out/docs/; a broken link is an error.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "Open out/docs/index.html"

bench: demo
	$(BIN)/python -m benchmarks.parity $(PHOTOS)
	$(BIN)/python -m benchmarks.cold_start
	$(BIN)/python -m benchmarks.group_norm

# Rows of latency, accuracy, tiles and host from this commit: a day at full size. Stop it and go on as you like.
rows: $(READY)
	$(BIN)/python -m benchmarks.all_rows

# Memory, descriptors and threads over 5,000 pictures with each CPU backend; half an hour.
soak: $(READY)
	$(BIN)/python -m benchmarks.soak

# What this device does, as one page: ten minutes, `make device OPTIONS="--budget 60"` for more. See docs/device.md.
device: $(READY)
	$(BIN)/python -m benchmarks.device $(OPTIONS)

# The contract with the oldest and newest supported versions of each library; a quarter of an hour.
versions: $(READY)
	$(BIN)/python -m benchmarks.versions

full-size: $(READY)
	$(BIN)/python -m benchmarks.full_size

# Damaged pictures and bundles by the ten thousand, about an hour; `make fuzz COUNT=500` is shorter.
COUNT ?= 10000
BUNDLE_KINDS := manifests goldens weights graphs graphs-openvino kills disk
fuzz: $(READY)
	$(BIN)/python -m benchmarks.fuzz --count $(COUNT) --jobs 2 --only pictures --name fuzz-pictures
	$(BIN)/python -m benchmarks.fuzz --count $(COUNT) --jobs 2 --only $(BUNDLE_KINDS) --name fuzz-bundles

# Exact versions and hashes come from the lock; when it or the project's own files change, all is installed again.
$(READY): pyproject.toml setup.py locks/development.txt
	$(PYTHON) -m tools.install --venv $(VENV)

# constraints.txt and locks/ from pyproject.toml. Versions stay, unless OPTIONS=--upgrade.
lock: $(TOOLS)/.ready
	$(TOOLS)/bin/python -m tools.lock $(OPTIONS)

# Known holes in what the locks hold.
audit: $(TOOLS)/.ready
	$(TOOLS)/bin/python -m tools.audit

$(TOOLS)/.ready: locks/tools.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet --require-hashes --no-deps -r locks/tools.txt
	touch $@

# NVIDIA's tritonserver and its clients, 0.9 GB, for tests/test_apps_triton.py alone: they need other versions of protobuf.
TRITON := .venv-triton
triton: $(TRITON)/.ready
$(TRITON)/.ready: locks/triton.txt
	$(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/pip install --quiet --require-hashes --no-deps -r locks/triton.txt
	touch $@

clean:
	rm -rf $(VENV) $(TOOLS) $(TRITON) out engines/demo
