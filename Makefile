# Two commands set everything up on a fresh machine: `make demo` and `make test`.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PHOTOS ?= tiny/samples

.PHONY: demo announce test lint docs bench full-size clean

demo: announce $(READY)
	$(BIN)/python export/build_engine.py tiny/disparity-d --resolution 256x256 --output engines/demo --overwrite
	$(BIN)/python export/build_engine.py tiny/normal-d --resolution 256x256 --output engines/demo-normal --overwrite
	$(BIN)/python -m runtime verify engines/demo
	$(BIN)/python -m runtime predict engines/demo tiny/samples --output out/demo
	$(BIN)/python -m runtime predict engines/demo-normal tiny/samples --output out/demo-normal
	@echo "Look at out/demo/*.png and out/demo-normal/*.png"

# Said before anything is installed. Sizes are those of the installed packages, on Linux x86-64.
announce:
	@test $(READY) -nt pyproject.toml -a $(READY) -nt constraints.txt || printf '%s\n' \
	  "Installing into $(VENV)/, 2.0 GB on disk, about 2 min 20 s on two cores:" \
	  "  PyTorch 0.75 GB (the CPU build is enough; where pip takes the CUDA build, several GB)," \
	  "  TensorRT-RTX 0.24 GB, OpenVINO 0.18 GB, transformers 0.13 GB, ONNX Runtime 0.07 GB," \
	  "  diffusers 0.06 GB, and tools for tests and documents." \
	  "Nothing is installed anywhere else. \`make clean\` removes it."
	@printf '%s\n' \
	  "Building two bundles from toy networks into engines/, about 30 s each on two cores." \
	  "Then: verifying one, and predicting for the pictures in tiny/samples into out/." ""

# Most of the time goes to tracing, which is one thread's work: two processes of one thread each are faster than one of two.
test: $(READY) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

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

full-size: $(READY)
	$(BIN)/python -m benchmarks.full_size

# Exact versions come from constraints.txt; a changed file there or in pyproject.toml installs again.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[cpu,openvino,rtx,export,dev,docs]"
	touch $(READY)

clean:
	rm -rf $(VENV) out engines/demo engines/demo-normal
