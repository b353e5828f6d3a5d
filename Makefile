# make demo   the whole path on real images, in minutes on two cores
# make test   all tests
# make lint   style
# make variants   each variant of router, experts and training, end to end on the digits, and compiled blocks: half an hour
PYTHON ?= python3
VENV ?= .venv
INSTALLED := $(VENV)/.installed

.PHONY: demo test variants lint format clean

demo: $(INSTALLED)
	$(VENV)/bin/python tools/demo.py

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -q --durations=5

variants: $(INSTALLED) work_dirs/digits_supernet/epoch_30.pth
	$(VENV)/bin/python -m pytest -q tests/slow

work_dirs/digits_supernet/epoch_30.pth:
	$(MAKE) demo

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(INSTALLED)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(INSTALLED): setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) work_dirs/demo data/digits
