# make serve   installs the server (no TensorFlow) and starts it
# make test    installs everything and runs all tests
# make lint    checks style, formatting and what is unsafe
# make bench   measures this server beside others, and training; installs those others

PYTHON ?= python3
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: serve test lint bench
serve: .venv/serve
	.venv/bin/python rest_api/app.py

test: .venv/test
	.venv/bin/python -m pytest

lint: .venv/test
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/bandit --quiet --recursive rest_api training

bench: .venv/test $(patsubst benchmarks/serving/rivals/%.txt,.bench/%/done,$(wildcard benchmarks/serving/rivals/*.txt))
	.venv/bin/python -m benchmarks.serving --venvs .bench --short
	.venv/bin/python -m benchmarks.training --short

.bench/%/done: benchmarks/serving/rivals/%.txt rest_api/requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

# The empty files .venv/serve and .venv/test say what is installed, and when.
# --no-compile: bytecode is written as modules are used, a quarter of what all of it would take.
.venv/serve: rest_api/requirements.txt | .venv/bin/python
	$(PIP) --no-compile -r rest_api/requirements.txt
	touch $@

.venv/test: requirements.txt rest_api/requirements.txt | .venv/bin/python
	$(PIP) -r requirements.txt
	touch $@ .venv/serve

.venv/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and \
	'This needs Python 3.11 or newer; name one: make PYTHON=python3.12 ' + '$(MAKECMDGOALS)')"
	$(PYTHON) -m venv .venv
