# Two commands do it all: `make demo` and `make test`. Each sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP_ARGS ?=
MERGES = build/tokenizer/open_clip/bpe_simple_vocab_16e6.txt.gz
# What CLIP's tokenizer is read from: the vocabulary in the package's data. The package itself is neither installed nor imported.
OPEN_CLIP = open_clip_torch==3.3.0

PHOTOGRAPHS = build/photographs
# Photographs to show the model, from the data of packages; scikit-image is neither installed nor imported.
SCIKIT_IMAGE = 'scikit-image>=0.25,<1'
SCIKIT_IMAGE_FILES = astronaut.png brick.png camera.png chelsea.png coffee.png coins.png grass.png motorcycle_left.png rocket.jpg

.PHONY: setup demo demo-export test test-nightly test-tensorrt check format clean
.PHONY: bench bench-precisions bench-coreml bench-selftest bench-report

setup: $(VENV)/.ready $(MERGES)

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "edgeclip needs Python 3.10 or newer; make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	touch $@

$(MERGES): | $(VENV)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps --no-compile --upgrade --target build/tokenizer $(OPEN_CLIP)

$(PHOTOGRAPHS)/.ready: | $(VENV)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps --no-compile --only-binary :all: --upgrade --target build/scikit-image $(SCIKIT_IMAGE)
	mkdir -p $(PHOTOGRAPHS)
	cp $(addprefix build/scikit-image/skimage/data/,$(SCIKIT_IMAGE_FILES)) $(PHOTOGRAPHS)
	cp $(VENV)/lib/python3*/site-packages/sklearn/datasets/images/*.jpg $(PHOTOGRAPHS)
	rm -rf build/scikit-image
	touch $@

demo: setup $(PHOTOGRAPHS)/.ready
	$(BIN)/edgeclip demo --photographs $(PHOTOGRAPHS)

demo-export: setup
	$(BIN)/edgeclip demo --export --tokenizer $(MERGES)

test: setup
	$(BIN)/python -m pytest -q -m 'not nightly and not gpu'

test-nightly: setup
	$(BIN)/python -m pytest -q -m 'not gpu'

# What is exported for TensorRT, parsed and built by TensorRT-RTX, which needs no GPU; the models of full size need the data.
test-tensorrt: setup
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[tensorrt-ci]'
	$(BIN)/python -m pytest -q -m 'not nightly and not gpu' $(wildcard tests/*/*tensorrt*.py) tests/e2e/test_plans.py
	$(if $(EDGECLIP_DATA),,$(error EDGECLIP_DATA names the folder of the data: make test-tensorrt EDGECLIP_DATA=DIR))
	$(BIN)/python -m edgeclip.benchmarks.plans --data $(EDGECLIP_DATA) --tokenizer $(MERGES) --report docs/reports/tensorrt-build.md

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_layers.py

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m edgeclip.benchmarks.spine --tokenizer $(MERGES)

# The data has train/ and eval/; bundles are made on the first run and kept in build/precisions.
bench-precisions: setup
	$(if $(EDGECLIP_DATA),,$(error EDGECLIP_DATA names the folder of the data: make bench-precisions EDGECLIP_DATA=DIR))
	$(BIN)/python -m edgeclip.benchmarks.precisions --data $(EDGECLIP_DATA) --tokenizer $(MERGES) --report docs/reports/precisions

# Packages for Core ML, carried out in NumPy; made on the first run and kept in build/coreml.
bench-coreml: setup
	$(if $(EDGECLIP_DATA),,$(error EDGECLIP_DATA names the folder of the data: make bench-coreml EDGECLIP_DATA=DIR))
	$(BIN)/python -m edgeclip.benchmarks.coreml --data $(EDGECLIP_DATA) --tokenizer $(MERGES) --report docs/reports/coreml.md

# Whether the benchmark finds a slowdown of a tenth and no winner between equals; nothing else should run meanwhile.
bench-selftest: setup
	$(BIN)/python -m edgeclip.benchmarks.selftest

# ACCURACY names what `edgeclip eval -o FILE` wrote of build/precisions/student.edgeclip. SECONDS: for each artifact and
# stage; a minute, by default, makes it an hour and a half.
bench-report: setup
	$(if $(EDGECLIP_DATA),,$(error EDGECLIP_DATA names the folder of the data: make bench-report EDGECLIP_DATA=DIR))
	$(BIN)/python -m edgeclip.benchmarks.student_report --data $(EDGECLIP_DATA) --tokenizer $(MERGES) \
	  $(if $(ACCURACY),--accuracy $(ACCURACY)) $(if $(SECONDS),--seconds $(SECONDS)) --report docs/reports/student.html

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
