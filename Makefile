# The two commands of a newcomer are `make demo` and `make test`; `make` alone lists all of them.

PYTHON ?= python3
VENV := .venv
PYTHON_IN_VENV := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
NEWEST := $(VENV)/newest
REAL := $(VENV)/real
GPU_MACHINE := $(VENV)/gpu_machine
GPU_TESTS := tests/test_teacher.py tests/test_targets.py tests/test_calculate_logits.py tests/test_retrieval.py \
    tests/test_gpu_benchmark.py

.DEFAULT_GOAL := help
.PHONY: help install demo demo-real test testgpu lint bench clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED) ## make .venv with the tested set of libraries

# mosaicml-streaming requires torchvision, which is not used here. One that was built for another torch fails to load,
# and then transformers' models do too: it is removed.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
	    { echo "Python 3.10 to 3.13 is required, $(PYTHON) is $$($(PYTHON) --version): make PYTHON=python3.11 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PYTHON_IN_VENV) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@$(PYTHON_IN_VENV) -c 'import torchvision' 2>/dev/null || $(PYTHON_IN_VENV) -m pip uninstall --quiet --yes torchvision
	@touch $@

$(NEWEST): tests/newest.txt $(INSTALLED)
	@rm -rf $@
	@$(PYTHON_IN_VENV) -m pip install --quiet --no-deps --target $@ --requirement $<

$(REAL): demo/real.txt $(INSTALLED)
	@rm -rf $@
	@$(PYTHON_IN_VENV) -m pip install --quiet --no-deps --target $@ --requirement $<

$(GPU_MACHINE)/.installed: tests/gpu_machine.txt tests/newest.txt $(INSTALLED)
	@rm -rf $(GPU_MACHINE)
	@$(PYTHON) -m venv $(GPU_MACHINE)
	@$(GPU_MACHINE)/bin/python -m pip install --quiet --requirement $<
	@touch $@

demo: $(INSTALLED) ## run the whole pipeline on a small corpus made on the spot, in demo_output/
	@$(PYTHON_IN_VENV) -m demo.run

demo-real: $(INSTALLED) $(REAL) ## the same on the King James Bible, with SmolLM2-135M as teacher and MiniLM as encoder
	@PYTHONPATH=$(abspath $(REAL)) $(PYTHON_IN_VENV) -m demo.run --real

test: $(INSTALLED) $(NEWEST) ## run all tests
	@$(PYTHON_IN_VENV) -m pytest -n 2

testgpu: $(GPU_MACHINE)/.installed ## run the tests of teacher and retrieval with the libraries of GPU machines
	@PYTHONPATH=$(CURDIR) $(GPU_MACHINE)/bin/python -m pytest -n 2 -k "not killed" $(GPU_TESTS)

lint: $(INSTALLED) ## ruff and mypy
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

bench: $(INSTALLED) ## run all benchmarks; each prints ratios to a reference measured in the same run
	@for script in $$(grep -l "^if __name__" benchmarks/*.py); do echo "== $$script"; $(PYTHON_IN_VENV) $$script || exit 1; done

clean: ## remove .venv, demo_output and caches
	rm -rf $(VENV) demo_output demo_real_output build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
