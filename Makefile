# Everything from a bare clone: Python 3.10 or newer, git and make are enough.
# PYTHON=python3.12 picks the interpreter (after `make clean`); ARGS="..." goes to the command that is run;
# CELLS=... is where `make test-all` keeps the outcomes of the cells of the works-with tables.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
ARGS ?=
CELLS ?= tests/works_with.json

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
MATRIX := $(VENV)/.matrix
UNFINISHED := $(VENV)/.unfinished
PYTEST := HF_HUB_OFFLINE=1 WANDB_MODE=offline OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help demo test test-all works-with effect audit survival soak speed lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## train the embedded model with and without emoreg; no GPU, account or download
	HF_HUB_OFFLINE=1 $(BIN)/emoreg demo $(ARGS)

test: $(READY) ## run the tests, without the slow ones, in two processes
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)
	@echo "emoreg: tests passed"

test-all: $(MATRIX) ## run all tests, and write the works-with tables from their outcomes
	$(PYTEST) -m "" --cells=$(CELLS) $(ARGS)
	$(BIN)/python tests/works_with.py
	@echo "emoreg: all tests passed"

works-with: $(READY) ## write the works-with tables from recorded outcomes; ARGS=--check only checks
	$(BIN)/python tests/works_with.py $(ARGS)

effect: $(READY) ## compare every method on small worlds, hours; goes on where it stopped
	$(BIN)/python benchmarks/effect.py --trainers sft $(ARGS)
	$(BIN)/python benchmarks/effect.py --adapter large $(ARGS)
	$(BIN)/python benchmarks/effect.py --adapter large --trainers sft --variants --seeds 1 2 3 $(ARGS)
	$(BIN)/python benchmarks/effect.py --adapter long --trainers sft --worlds embedded --arms none frozen two-facets refit --seeds 1 2 3 $(ARGS)
	$(BIN)/python benchmarks/effect.py --adapter large --trainers sft --worlds several --arms none frozen two-facets refit top prevent honest-replies --seeds 1 2 3 $(ARGS)
	$(BIN)/python benchmarks/effect.py --adapter large --worlds embedded --cost --seeds 1
	$(BIN)/python benchmarks/effect.py --audit --worlds embedded narrow several
	$(BIN)/python benchmarks/effect.py --report
	@echo "emoreg: wrote benchmarks/RESULTS.md and benchmarks/results/effect.json"

audit: $(READY) ## how often the audit's verdict is right where the truth is planted, two hours
	$(BIN)/python benchmarks/audit.py $(ARGS)

survival: $(READY) ## kill 90 short runs at random moments, resume and compare; goes on where it stopped
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/survival.py $(ARGS)

soak: $(READY) ## 2,000 steps with everything on: is memory flat
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py $(ARGS)

speed: $(READY) ## what emoreg costs a step and a run, beside the bare trainer and peers' designs, hours
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/speed.py $(ARGS)

lint: $(READY) ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@echo "emoreg: lint passed"

clean: ## remove the environment, builds and caches; runs stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The mark of a finished install is the mark of an unfinished one, renamed by the last command:
# an install that was interrupted is thrown away by the next call, a finished one is used again.
$(READY): pyproject.toml $(CONSTRAINTS)
	@command -v $(PYTHON) >/dev/null || { echo "emoreg: no '$(PYTHON)' here; name a Python >= 3.10, as in: make test PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(None if sys.version_info >= (3, 10) else "emoreg: $(PYTHON) is Python " + v + "; name a Python >= 3.10, as in: make test PYTHON=python3.11")'
	@if [ -e $(UNFINISHED) ]; then echo "emoreg: the last install did not finish, starting over"; rm -rf $(VENV); fi
	@mkdir -p $(VENV) && rm -f $@ && touch $(UNFINISHED)
	@echo "emoreg: installing into $(VENV), minutes the first time (PyTorch is the largest part)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c $(CONSTRAINTS) -e ".[dev]"
	@mv $(UNFINISHED) $@

# What the works-with tables need beside it, kernels and launchers; pip skips what is there.
$(MATRIX): $(READY)
	@echo "emoreg: installing what the works-with tables are measured with"
	$(BIN)/python -m pip install --disable-pip-version-check -c $(CONSTRAINTS) -e ".[dev,matrix]"
	@touch $@
