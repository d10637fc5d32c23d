# The commands of the README and of CI. The environment is .venv in this folder; PYTHON chooses the interpreter that makes it.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test check audit setup bench faults docs gpu-check ui clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; found: $$($(PYTHON) --version). Set PYTHON=..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "setuptools>=77.0.3" wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[dask,dev,docs,s3,server]"
	mkdir -p .venv/typecheck/longloom
	for part in evals flows kernels storage tasks; do ln -sfn "$(CURDIR)/$$part" .venv/typecheck/longloom/$$part; done
	touch $(READY)

demo: $(READY)
	$(BIN)/longloom demo

# A file is one process's; one thread each, as there is a process a core.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=.venv/typecheck $(BIN)/lint-imports

# Versions as pinned, whole, and without known weaknesses; the last says NOT CHECKED where no index knows them.
audit: $(READY)
	$(BIN)/python infra/audit.py

bench: $(READY)
	mkdir -p benchmarks/results
	$(BIN)/python benchmarks/attention.py --json benchmarks/results/attention.json
	$(BIN)/python benchmarks/prefill.py --json benchmarks/results/prefill.json
	$(BIN)/python benchmarks/scoring.py --json benchmarks/results/scoring.json
	$(BIN)/python benchmarks/razorattention.py --json benchmarks/results/razorattention.json
	$(BIN)/python benchmarks/longcache_speed.py --json benchmarks/results/longcache_speed.json
	$(BIN)/python benchmarks/longcache.py --most 131072 --json benchmarks/results/longcache.json
	$(BIN)/python benchmarks/minisequence.py --json benchmarks/results/minisequence.json
	$(BIN)/python benchmarks/pursuit.py --json benchmarks/results/pursuit.json

# What goes wrong in operation, tried on whole processes: a quarter of an hour, and root for a small file system.
faults: $(READY)
	mkdir -p benchmarks/results
	$(BIN)/python benchmarks/faults.py --out benchmarks/results/faults.md

# On a machine with a GPU. Needs no setup: any interpreter with torch, triton, pytest and hypothesis will do
# (transformers for the part razor), .venv's where it sees the GPU or PYTHON has no torch, else PYTHON.
# ARGS="--part decode --out FOLDER" passes options on.
gpu-check:
	@python=$(PYTHON); \
	if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null \
	|| { test -x $(BIN)/python && ! $(PYTHON) -c 'import torch' 2>/dev/null; }; then python=$(BIN)/python; fi; \
	$$python benchmarks/gpu_check.py $(ARGS)

# The documentation as a site; a link that leads nowhere is an error. Pages open from the file system, their search
# needs a web server: python -m http.server --directory build/site
docs: $(READY)
	env -u LONGLOOM_STORE NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

ui: $(READY)
	$(BIN)/longloom ui

clean:
	rm -rf .longloom build *.egg-info .mypy_cache .ruff_cache .pytest_cache
