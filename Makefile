# One word for each thing a visitor or a contributor does: `make help` lists them.
# Written for GNU make 3.81 and newer, with the tools of Linux and macOS alike.
#
#   make demo PYTHON=python3.12     use this Python to make the virtual environment
#   make demo TORCH=cpu             which build of PyTorch: auto, cpu, cu130 (any index of download.pytorch.org), or pypi
#   make demo OUT=somewhere         where the demo writes

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && { echo $$p; break; }; done)
TORCH  ?= auto
OUT    ?= demo
VENV   ?= .venv
BIN     = $(VENV)/bin
PIP     = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
BUILD   = $(BIN)/python -m clep_tutorial.build
SOURCES = settings.ini setup.py constraints.txt
# two notebooks at a time with one thread each finish sooner than one after the other with two; nothing is fetched from a hub
QUIET   = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

.DEFAULT_GOAL := help
.PHONY: help demo test export docs lab bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-8s%s\n", $$1, $$2}' Makefile

demo: $(VENV)/.demo ## the whole road on a small simulated world: prepare, train, evaluate, search
	@$(BIN)/clep demo --out $(OUT)

test: $(VENV)/.dev ## every check that the project has, short of rendering the site
	@echo "== 1 of 6: are the notebooks clean?"
	@$(BUILD) clean
	@echo "== 2 of 6: are modules, tests and README in step with the notebooks?"
	@$(BUILD) sync
	@echo "== 3 of 6: ruff"
	@$(BIN)/ruff check
	@echo "== 4 of 6: can the pages of the site be made, and do their links lead somewhere?"
	@$(BUILD) check
	@echo "== 5 of 6: do all notebooks run? (nbdev_test)"
	@$(QUIET) $(BIN)/nbdev_test --timing
	@echo "== 6 of 6: pytest"
	@$(QUIET) $(BIN)/python -m pytest

export: $(VENV)/.dev ## modules, tests, README and reference, made again from the notebooks
	@$(BUILD) export

docs: $(VENV)/.dev ## the site, in _docs (needs Quarto 1.7: https://quarto.org)
	@$(BUILD) check
	@command -v quarto >/dev/null 2>&1 || { echo "The pages are made and checked, in _proc. To see them as a site, install Quarto 1.7 (https://quarto.org) and repeat."; exit 1; }
	@cd _proc && quarto render --no-cache
	@rm -rf _docs && mv _proc/_docs _docs && echo "Open _docs/index.html"

lab: $(VENV)/.lab ## JupyterLab, at the notebooks
	@$(BIN)/jupyter lab --notebook-dir nbs

bench: $(VENV)/.demo ## side-by-side timings, by `clep bench`
	@$(BIN)/clep bench --help >/dev/null 2>&1 || { echo "This version of clep has no bench verb yet."; exit 1; }
	@$(BIN)/clep bench

clean: ## remove what was built; keeps .venv (rm -rf .venv removes it) and what you trained
	@rm -rf _docs _proc build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find clep_tutorial nbs tests \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

# -- the virtual environment: made once, again only when a requirement changes --

$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "This project needs Python 3.10 or newer, and found none. Install one, or name it: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON) does not run, or is older than 3.10. Name another: make PYTHON=/path/to/python3"; exit 1; }
	@echo "== Making $(VENV) with `$(PYTHON) --version`"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# On Linux, PyPI's PyTorch brings CUDA along: gigabytes that a machine without an NVIDIA GPU never uses. There, `auto` asks
# PyTorch's own index for the CPU build, unless pip has been told to look somewhere of its own.
$(VENV)/.torch: constraints.txt | $(VENV)/.python
	@from="$(TORCH)"; \
	if [ "$$from" = auto ]; then from=pypi; \
		if [ "`uname -s`" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1 && ! $(BIN)/python -m pip config list | grep -E 'index-url|find-links|no-index' >/dev/null; then from=cpu; fi; \
	fi; \
	if [ "$$from" != pypi ]; then \
		echo "== Installing PyTorch ($$from)"; \
		$(PIP) --index-url https://download.pytorch.org/whl/$$from torch || { echo "PyTorch's index gave no $$from build. Repeat with TORCH=pypi to take what PyPI has."; exit 1; }; \
	fi
	@touch $@

$(VENV)/.demo: $(SOURCES) $(VENV)/.torch
	@echo "== Installing what the demo needs into $(VENV): once, a few minutes"
	@$(PIP) -e ".[offline]"
	@touch $@

$(VENV)/.lab: $(SOURCES) $(VENV)/.torch
	@echo "== Installing JupyterLab and what the lessons need into $(VENV): once, a few minutes"
	@$(PIP) -e ".[offline,lab]"
	@touch $@ $(VENV)/.demo

$(VENV)/.dev: $(SOURCES) $(VENV)/.torch
	@echo "== Installing what the tests need into $(VENV): once, a few minutes"
	@$(PIP) -e ".[dev,offline,video,track]"
	@touch $@ $(VENV)/.demo
