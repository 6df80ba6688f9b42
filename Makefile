PYTHON ?= python3
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check
# On every core; a worker that has nothing left to do takes tests from the other.
PYTEST := .venv/bin/python -m pytest -n logical --dist worksteal
RIVALS := $(wildcard benchmarks/serving/rivals/*.txt)

.PHONY: help serve train test test-fast lint lock bench need-wrk

help: ## say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: .venv/serve ## install the server, without TensorFlow, and start it on port 5000; MODEL="PATH …" chooses models
	.venv/bin/python rest_api/app.py $(MODEL:%=--model %)

# Interrupted, the training goes on after its last epoch, and the rest begins anew.
train: .venv/train ## train fast94 on CIFAR-10, export it and measure it; needs 3 GB, and CIFAR10_DIR or the network
	.venv/bin/python -m training.train fast94 --final --hold-out
	.venv/bin/python -m training.export runs/fast94-seed0-final bundles/fast94
	.venv/bin/python -m training.evaluate bundles/fast94
	@echo "Serve it: .venv/bin/python rest_api/app.py --model bundles/fast94"

# Ray gives its processes up that take over 15 seconds to start, as beside other tests they may. Its
# authentication is what the environment says when it is first imported: hence these files alone.
test: .venv/test ## install everything, 3 GB, and run all tests, with their coverage
	$(PYTEST) --cov -m "not cluster"
	.venv/bin/python -m pytest --cov --cov-append tests/test_cluster.py tests/test_training_cluster.py

test-fast: .venv/test ## run the tests that need only seconds
	$(PYTEST) -m "not slow"

lint: .venv/test ## check style, formatting, types and what is unsafe
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/bandit --quiet --recursive rest_api training

lock: .venv/bin/python ## choose the versions that are shipped: rest_api/requirements.lock
	$(PIP) uv
	.venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	    --custom-compile-command "make lock" rest_api/requirements.txt --output-file rest_api/requirements.lock

bench: need-wrk .venv/test $(RIVALS:benchmarks/serving/rivals/%.txt=.bench/%/done) ## measure the server beside others, and training
	.venv/bin/python -m benchmarks.serving --venvs .bench --short
	.venv/bin/python -m benchmarks.training --short

need-wrk: # before gigabytes are installed
	@command -v wrk > /dev/null || { echo "error: this needs wrk: apt install wrk"; exit 1; }

.bench/%/done: benchmarks/serving/rivals/%.txt rest_api/requirements.txt | .venv/bin/python
	.venv/bin/python -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

# The empty files .venv/serve, .venv/train and .venv/test say what is installed, and when.
# --no-compile: bytecode is written as modules are used, a quarter of what all of it would take.
# Python 3.11 puts setuptools into each environment, 10 MB that the server does not use.
.venv/serve: rest_api/requirements.txt | .venv/bin/python
	$(PIP) --no-compile -r rest_api/requirements.txt
	.venv/bin/python -m pip uninstall -qq --yes setuptools
	touch $@

.venv/train: rest_api/requirements.txt training/requirements.txt | .venv/bin/python
	$(check_tensorflow)
	$(PIP) -r rest_api/requirements.txt -r training/requirements.txt
	touch $@ .venv/serve

.venv/test: requirements.txt rest_api/requirements.txt rest_api/requirements-cluster.txt training/requirements.txt tests/requirements.txt deploy/requirements.txt examples/requirements.txt | .venv/bin/python
	$(check_tensorflow)
	$(PIP) -r requirements.txt -r deploy/requirements.txt -r examples/requirements.txt
	touch $@ .venv/serve .venv/train

define check_tensorflow
@.venv/bin/python -c "import sys; sys.exit(sys.version_info >= (3, 14) and \
'TensorFlow has no release for this Python yet; training and the tests need 3.11, 3.12 or 3.13: ' \
'rm -r .venv, then make PYTHON=python3.13 $(MAKECMDGOALS)')"
endef

.venv/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15) and \
	'This needs Python 3.11, 3.12, 3.13 or 3.14; name one: make PYTHON=python3.13 $(MAKECMDGOALS)')"
	$(PYTHON) -m venv .venv
