# temperd: `make demo` shows the main job, `make test` runs the tests, `make check` is the gate. Each sets up what it needs.
PYTHON ?= python3
# Which runtime goes into the environment: ort-training where its wheels exist (x86-64, Python <= 3.12), else stock ort.
EXTRA ?= $(shell $(PYTHON) -c "import platform, sys; print('ort-training' if platform.machine() == 'x86_64' and sys.version_info < (3, 13) else 'ort')")
VENV ?= .venv-$(EXTRA)
BIN := $(VENV)/bin
ARGS ?=

.PHONY: slow-test help asyncapi bench browser-test console-demo console-pictures demo fuzz test test-ort test-ort-training check format container-test deb deb-test systemd-test arm64-test machine-test rauc-test kernel-test kill-matrix update-test package-update-test soak ledger postgres-test reference-figures day clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 20

demo: $(VENV)/.installed  ## the whole story on this machine: publish, pull, fine-tune under heat, promote
	$(BIN)/temperd demo $(ARGS)

console-demo: $(VENV)/.installed  ## three emulated boards, and the fleet in a browser on them, until Ctrl-C
	$(BIN)/temperd console --demo $(ARGS)

test: $(VENV)/.installed tools  ## unit and end-to-end tests (real broker, web server and processes)
	$(BIN)/python -m pytest $(ARGS)

slow-test: $(VENV)/.installed tools  ## what CI leaves out of `make test`: poisoned jobs, bits that flip in memory, kill -9 at every step (4 minutes)
	$(BIN)/python -m pytest -m slow $(ARGS)

test-ort:  ## the same tests on the stock onnxruntime wheel
	$(MAKE) test EXTRA=ort

test-ort-training:  ## the same tests with onnxruntime-training
	$(MAKE) test EXTRA=ort-training

# A peer with wheels for this machine: onnxruntime-training has none beyond x86-64 and Python 3.12.
PEERS ?= $(shell $(PYTHON) -c "import platform, sys; print('torch,ort-training' if platform.machine() == 'x86_64' and sys.version_info < (3, 13) else 'torch')")
TORCH ?= torch==2.13.0
comma := ,
bench:  ## speed and memory of training beside PyTorch and onnxruntime-training (first time: 1 GB of peers)
	$(MAKE) .venv-ort/.installed EXTRA=ort
	$(MAKE) $(foreach peer,$(subst $(comma), ,$(PEERS)),.venv-bench-$(peer)/.installed)
	.venv-ort/bin/temperd bench train --vs "$(PEERS)" $(ARGS)

# TORCH="torch==2.13.0 --index-url URL" takes PyTorch's own CPU wheels, which are smaller.
.venv-bench-torch/.installed:
	$(PYTHON) -m venv --clear .venv-bench-torch
	.venv-bench-torch/bin/python -m pip install -q --disable-pip-version-check numpy
	.venv-bench-torch/bin/python -m pip install -q --disable-pip-version-check $(TORCH)
	@touch $@

.venv-bench-ort-training/.installed: pyproject.toml
	$(PYTHON) -m venv --clear .venv-bench-ort-training
	.venv-bench-ort-training/bin/python -m pip install -q --disable-pip-version-check -e ".[ort-training]"
	@touch $@

reference-figures: $(VENV)/.installed  ## the quick figures anew, then docs/reference-figures.md from docs/figures
	$(BIN)/temperd bench figures --run --out docs/reference-figures.md $(ARGS)
	$(BIN)/python -m service.console.figures_data docs/figures

DAY_BOARDS = raspberry-pi-4 raspberry-pi-5 jetson-orin-nano edge-22w

day: $(VENV)/.installed  ## a day of each emulated board at 30 °C, steered by temperd and by its kernel (about 5 minutes)
	for board in $(DAY_BOARDS); do for by in temperd kernel; do \
		$(BIN)/python -m agent.board.day --profile $$board --steered-by $$by --ambient 30 $(ARGS) || exit 1; \
	done; done

postgres-test: $(VENV)/.installed  ## the stores' tests with a real PostgreSQL, which apt installs if it is missing (root, Debian)
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql; }
	$(BIN)/python -m pytest tests/service/test_store.py tests/service/test_store_chart.py $(ARGS)

ledger: $(VENV)/.installed  ## 2,000 lives of a board's ledger: commands, crashes, repeats, reorderings (a quarter of an hour)
	TEMPERD_LEDGER_RUNS=2000 $(BIN)/python -m pytest -s tests/service/test_ledger_machine.py $(ARGS)

soak: $(VENV)/.installed tools  ## a day of an emulated board in fast time with all that can go wrong (36 minutes; as root its disk fills too)
	$(BIN)/python -m tests.soak.run $(ARGS)

kill-matrix: $(VENV)/.installed  ## kill -9 at every step that writes to a disk: the number of cells of each flow
	$(BIN)/python -m pytest -s tests/e2e/test_kill_matrix.py $(ARGS)

update-test: $(VENV)/.installed  ## releases of temperd on trial, good and bad, on a board as installed (15 minutes)
	TEMPERD_UPDATES=1 $(BIN)/python -m pytest -s tests/e2e/test_agent_trial.py $(ARGS)

package-update-test: $(VENV)/.installed  ## the Debian package updates itself, well and badly, in its own root file system (root; 4 minutes)
	PYTHON=$(BIN)/python packaging/update/test.sh $(ARGS)

browser-test: $(VENV)/.installed tools  ## the console's pages in the machine's own Chromium, which apt installs if it is missing (root, Debian)
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; }
	$(BIN)/python -m pytest tests/browser $(ARGS)

console-pictures: $(VENV)/.installed tools  ## the pictures of docs/console.md anew, from `temperd console --demo` (five minutes)
	$(BIN)/python -m tests.browser.pictures $(ARGS)

fuzz: .venv-fuzz/.installed  ## 1.2 million damaged inputs for all that reads bytes from outside (two minutes)
	.venv-fuzz/bin/python tests/fuzz/run.py $(ARGS)

# atheris has wheels for x86-64 only; elsewhere the extra is empty and hypothesis drives the same targets.
.venv-fuzz/.installed: pyproject.toml
	$(PYTHON) -m venv --clear .venv-fuzz
	.venv-fuzz/bin/python -m pip install -q --disable-pip-version-check -e ".[ort,dev,fuzz]"
	@touch $@

check: $(VENV)/.installed  ## the gate: ruff, mypy strict, import law, dead links in the docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_import_law.py tests/test_docs.py

format:  ## let ruff format the sources
	$(BIN)/ruff format .

container-test:  ## build the images with buildah, run one, and the fleet of the compose file (root, Debian; a quarter of an hour)
	packaging/container/test.sh

# Which packages `make deb` makes, as SUITE-ARCHITECTURE.
DEBS ?= bookworm-amd64 bookworm-arm64 trixie-amd64 trixie-arm64
deb: $(VENV)/.installed  ## Debian packages in dist/: Bookworm and Trixie, amd64 and arm64 (root, x86-64 Debian; a minute each)
	for deb in $(DEBS); do PYTHON=$(BIN)/python packaging/deb/build.sh $${deb%-*} $${deb#*-} dist || exit 1; done

deb-test: $(VENV)/.installed  ## install, upgrade, break, remove and purge the packages in booted Debians (root; about 15 minutes)
	PYTHON=$(BIN)/python packaging/deb/test.sh $(ARGS)

systemd-test: $(VENV)/.installed  ## boot a systemd with temperd's units and kill what can be killed (root, Debian, x86-64)
	packaging/systemd/test.sh
	PYTHON=$(BIN)/python packaging/systemd/booted.sh $(ARGS)

rauc-test: $(VENV)/.installed  ## update a system by the real RAUC, and leave one that heats (root, Debian; a minute)
	PYTHON=$(BIN)/python packaging/rauc/test.sh

kernel-test: $(VENV)/.installed  ## real kernel nodes in an emulated x86 machine: sensors and levers (root, Debian; 5 minutes)
	PYTHON=$(BIN)/python packaging/kernel/test.sh

arm64-test:  ## a Cortex-A72 by emulation: losses compared, one job, tests of policies/ and agent/ (root, x86-64 Debian; half an hour)
	$(MAKE) .venv-ort/.installed EXTRA=ort
	PYTHON=.venv-ort/bin/python packaging/arm64/test.sh $(ARGS)

machine-test: $(VENV)/.installed  ## a whole arm64 machine by emulation: the .deb installed, a job by command, memory and power lost (root, x86-64 Debian)
	PYTHON=$(BIN)/python packaging/machine/test.sh $(ARGS)

clean:  ## remove environments and what the demo made
	rm -rf .node-asyncapi .venv-fuzz .venv-ort .venv-ort-training .venv-bench-torch .venv-bench-ort-training temperd-console-demo temperd-demo temperd-soak build *.egg-info

# The environment is made anew when pyproject.toml or the kernel library's sources change.
$(VENV)/.installed: pyproject.toml $(wildcard agent/engine/native/*.[ch] agent/engine/native/*.inc)
	@echo "making $(VENV) with the extra '$(EXTRA)' (first time: a minute or two)"
	@$(PYTHON) -c "import venv, ensurepip" 2>/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq python3-venv; } || { echo "Python's venv is missing: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[$(EXTRA),console,demo,dev]"
	@touch $@

NODE := .node-asyncapi

asyncapi: $(NODE)/.installed  ## docs/asyncapi.yaml against the standard, with AsyncAPI's own parser
	NODE_PATH=$(NODE)/node_modules node packaging/asyncapi/validate.cjs docs/asyncapi.yaml

# Beside the sources, as environments are: documents of packages are not ours to check. Their scripts are not run.
$(NODE)/.installed: packaging/asyncapi/package.json packaging/asyncapi/package-lock.json
	@command -v node >/dev/null && command -v npm >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq nodejs npm; } || { echo "Node is missing: apt install nodejs npm"; exit 1; }
	rm -rf $(NODE) && mkdir -p $(NODE) && cp packaging/asyncapi/package.json packaging/asyncapi/package-lock.json $(NODE)/
	npm ci --prefix $(NODE) --ignore-scripts --no-audit --no-fund --silent
	@touch $@

.PHONY: tools
tools: $(VENV)/.installed
	@$(BIN)/python -m service.broker
