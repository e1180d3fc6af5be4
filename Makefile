# make reproduce            install, run the notebooks, write the report     PROFILE=smoke|demo|full|paper  ONLY=01,03  JOBS=2
# make test                 install, run the tests                           ARGS="-k attention"
# make soak                 install, kill and damage runs at random, an hour   ARGS="--kills 20 --damages 30"
# make lab                  install, open JupyterLab                         ARGS="--no-browser"
# make gpu                  install, run what only an accelerator can show, six minutes   ARGS="--size small"
# make parity               install torch and transformers apart, compare their models with ours    KINDS="language flow"
# make site                 write a static site of the newest run (or RUN=runs/<id>) into site/
# make figures              publish the newest run, if complete (or RUN=runs/<id>): figures/, results.json, RESULTS.md, README
PYTHON ?= python3
VENV ?= .venv
PROFILE ?= demo
ONLY ?=
JOBS ?= 1
RUN ?=
ARGS ?=
KINDS ?=

# The stamp carries the Python version: another PYTHON= makes a new environment instead of using what is there.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
STAMP := $(VENV)/.installed-$(VERSION)
RUN_PYTHON := $(VENV)/bin/python

.PHONY: reproduce test soak gpu lab parity figures site help
help:
	@sed -n '1,8s/^# //p' Makefile

reproduce: $(STAMP)
	@$(RUN_PYTHON) -m perceiver_lib reproduce --profile $(PROFILE) --jobs $(JOBS) $(if $(ONLY),--only $(ONLY))

test: $(STAMP)
	@$(RUN_PYTHON) -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

soak: $(STAMP)
	@$(RUN_PYTHON) -m tests.soak $(ARGS)

gpu: $(STAMP)
	@$(RUN_PYTHON) -m tests.experiments.gpu_checks $(ARGS)

lab: $(STAMP)
	@$(RUN_PYTHON) -m perceiver_lib lab $(if $(ARGS),-- $(ARGS))

parity: requirements.txt pyproject.toml
	@test -d $(VENV)-parity || $(PYTHON) -m venv $(VENV)-parity
	@$(VENV)-parity/bin/python -m pip install --quiet --disable-pip-version-check -e '.[parity]'
	@$(VENV)-parity/bin/python -m tests.pretrained.parity $(KINDS)

figures: $(STAMP)
	@$(RUN_PYTHON) -m perceiver_lib figures $(if $(RUN),--run $(RUN))

site: $(STAMP)
	@$(RUN_PYTHON) -m perceiver_lib site $(if $(RUN),--run $(RUN))

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo 'Python 3.11 or newer is needed, and "$(PYTHON)" is $(or $(VERSION),not there); name one with: make PYTHON=python3.12' >&2; exit 1; }
	@echo 'Installing into $(VENV) (Python $(VERSION), about 2 GB, a few minutes) ...'
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) || { echo 'No virtual environment could be made; on Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	@$(RUN_PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $(STAMP)
