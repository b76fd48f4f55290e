# `make demo` and `make test` install everything that they need.
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: demo demo-scratch test test-all lint gpu install clean

# As in the paper: pretrain the ResNet-50, then train the detector from it.
demo: install
	$(PY) tools/demo.py

# Train the detector only, from scratch.
demo-scratch: install
	$(PY) tools/sample_data.py pictures
	$(PY) train_net.py --config-file configs/frcnn_rsb_sample.yaml

test: install lint
	$(PY) -m pytest

test-all: install lint
	$(PY) -m pytest -m ""

lint: install
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	.venv/bin/lint-imports --no-cache

# On a machine with a GPU: run the tests for it, then all measurements of BENCHMARKS.md that need it,
# with .venv if it exists, else with the machine's own Python. PART=inference runs one part.
gpu:
	@$(if $(wildcard $(PY)),$(PY),$(PYTHON)) tools/gpu.py $(PART)

install: .venv/installed

.venv/installed: requirements.txt requirements-datasets.txt setup.py packaging/detectron2-0.6.patch packaging/install_detectron2.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --disable-pip-version-check --no-compile -r requirements.txt
	$(PY) -m compileall -qq -j 0 .venv/lib || true  # pip uses one core; some files are for other Python versions
	$(PY) -m pip install --disable-pip-version-check --no-deps -r requirements-datasets.txt
	$(PY) -m pip install --disable-pip-version-check --no-deps sahi==0.12.8 trackers==2.6.1  # their dependencies include a second OpenCV
	$(PY) tools/install_detectron2.py
	$(PY) -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

clean:
	rm -rf .venv build *.egg-info
