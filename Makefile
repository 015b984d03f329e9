# Portable make and sh only. `make` sets up .venv; everything else builds on that.

PYTHON =
VENV = .venv
RUN = $(VENV)/.tools-installed
TESTED = $(VENV)/.tests-installed
LINTED = $(VENV)/.lint-installed
PIP = PIP_ROOT_USER_ACTION=ignore $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet

all: $(RUN)

help:
	@echo 'make              set up .venv with all tools, and nothing else'
	@echo 'make demo         set up, then make six images with the mock backend in ./demo-output'
	@echo 'make test         set up, then run all tests'
	@echo 'make lint         ruff, mypy, and shellcheck where it is installed'
	@echo 'make docs         write the help texts and tables into docs/ again'
	@echo 'make bench        measure start-up, pipes, lateness and memory beside their peers'
	@echo 'make wheel-check  build wheel and sdist, install each elsewhere, render with it'
	@echo 'make clean        remove what was made here (not ./demo-output)'

$(RUN): pyproject.toml
	@PYTHON='$(PYTHON)' sh tests/make_venv.sh '$(VENV)'
	@$(PIP) --editable .
	@$(VENV)/bin/python -m compileall -q lib
	@touch $(RUN)

$(TESTED): $(RUN)
	@$(PIP) --editable '.[test]'
	@sh tests/get_postgrest.sh '$(VENV)'
	@touch $(TESTED)

$(LINTED): $(TESTED)
	@$(PIP) --editable '.[test,lint]'
	@touch $(LINTED)

demo: $(RUN)
	@sh docs/demo.sh

test: $(TESTED)
	@$(VENV)/bin/python -m pytest -n auto

lint: $(LINTED)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check --quiet .
	@$(VENV)/bin/mypy
	@if command -v shellcheck >/dev/null; then shellcheck bin/.run docs/*.sh tests/*.sh .ci/run; \
	else echo 'lint: no shellcheck here, shell files not checked (Debian: apt install shellcheck)'; fi

docs: $(TESTED)
	@$(VENV)/bin/python tests/docs_sync.py --write

bench: $(TESTED)
	@$(PIP) --editable '.[test,bench]'
	@$(VENV)/bin/python bench/run.py

wheel-check: $(TESTED)
	@sh tests/wheel_check.sh '$(VENV)/bin/python'

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis

.PHONY: all help demo test lint docs bench wheel-check clean
