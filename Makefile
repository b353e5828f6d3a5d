# make install  an environment in .venv with everything in it; the other targets do it first
# make demo     the whole path on real images, in minutes on two cores
# make gpu      what was never measured on a GPU, in nine minutes on one: docs/gpu.md
# make gpu-quick  the same parts on tiny sizes on a CPU: four minutes on one core
# make shrink-demo  a real pretrained ViT halved for real pictures: fetches 330 MB once; 13 minutes on two cores
#
# make lint     style, spelling, prose, and the documentation
# make test     what a change is likely to break: some 8 minutes on two cores
# make test-all make test, then all others but the slow ones: twenty minutes
# make coverage the same, and which lines of tas_lora they run
#
# make nightly  10,000 made-up inputs for each reader, long runs that must hold no more at their end, the tutorial, the slow tests: some 40 minutes
# make variants each variant of router, experts and training, end to end on the digits, and compiled blocks: half an hour
# make soak     faults done to real runs, a table of what was lost: half an hour
# make lowest   all tests with the lowest versions that setup.py allows, in an environment of their own
# make fork     all tests on onedl-mmengine and onedl-mmpretrain, in an environment of their own; a nightly job
#
# make docs     the documentation, in site/; docs/drawings.py draws its figures
# make format   what ruff can mend of the style
# make clean    remove what was installed and built
PYTHON ?= python3
VENV ?= .venv
INSTALLED := $(VENV)/.installed
LOWEST := .venv-lowest
FORK := .venv-fork

PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q --durations=5
PARALLEL = -n logical --dist worksteal

.PHONY: install demo gpu gpu-quick shrink-demo test test-all coverage variants soak nightly lowest fork lint docs format clean

install: $(INSTALLED)

demo: $(INSTALLED)
	$(VENV)/bin/python tools/demo.py

gpu: $(INSTALLED)
	$(VENV)/bin/python tools/gpu_check.py --page docs/gpu.md; code=$$?; \
	$(VENV)/bin/python tools/analysis/scale.py --records work_dirs/gpu --markdown work_dirs/gpu/scale.md; \
	exit $$code

gpu-quick: $(INSTALLED)
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(VENV)/bin/python tools/gpu_check.py --device cpu --quick --again --out work_dirs/gpu_quick

# AMP= is for processors without bfloat16 arithmetic, where it takes longer.
AMP = --amp
shrink-demo: $(INSTALLED)
	$(VENV)/bin/python projects/from_pretrained/fetch.py
	$(VENV)/bin/python tools/shrink.py timm:vit_small_patch14_dinov2 --checkpoint data/dinov2_s.safetensors --data data/emoji --img-size 56 --limit macs=0.5 --out work_dirs/shrink_demo --finetune-epochs 6 --epochs 8 --polish-epochs 8 $(AMP) --batch-size 32 --batches 2 --population 8 --generations 3 --sizes 2 --formats safetensors --no-scratch

test: $(INSTALLED)
	$(PYTEST) $(PARALLEL) -m 'not full and not slow'

test-all: test
	$(PYTEST) $(PARALLEL) -m 'full and not slow'

coverage: $(INSTALLED)
	$(PYTEST) $(PARALLEL) --cov --cov-report=term:skip-covered

lowest: $(LOWEST)/.installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -q --durations=5

$(LOWEST)/.installed: setup.py requirements/lowest.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)) and "The oldest versions need Python 3.10 or 3.11: make lowest PYTHON=python3.x")'
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test]' -c requirements/lowest.txt
	touch $@

# test_packaging also checks that no file of the fork was written over.
fork: $(FORK)/.installed
	OMP_NUM_THREADS=1 $(FORK)/bin/python -m pytest -q --durations=5

# Without --no-deps, mmcv-lite and the toolkit would bring MMEngine over the fork.
$(FORK)/.installed: setup.py requirements/fork.txt
	$(PYTHON) -m venv --clear $(FORK)
	$(FORK)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/fork.txt
	$(FORK)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps mmcv-lite==2.2.0 -e .
	$(FORK)/bin/python -c 'from importlib.metadata import requires; print(*(r.split(";")[0] for r in requires("tas-lora") if "\"test\"" in r), sep="\n")' > $(FORK)/test.txt
	$(FORK)/bin/python -m pip install --quiet --disable-pip-version-check -r $(FORK)/test.txt
	touch $@

variants: $(INSTALLED) work_dirs/digits_supernet/epoch_30.pth
	$(VENV)/bin/python -m pytest -q tests/slow/test_digits_variants.py tests/slow/test_compile.py

soak: $(INSTALLED)
	$(VENV)/bin/python tests/soak.py

nightly: $(INSTALLED)
	HYPOTHESIS_PROFILE=nightly $(VENV)/bin/python -m pytest -q tests/test_fuzz.py
	$(VENV)/bin/python -m pytest -q -s tests/slow/test_long_runs.py
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q tests/slow/test_notebook.py
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -m slow

work_dirs/digits_supernet/epoch_30.pth:
	$(MAKE) demo

lint: $(INSTALLED) docs
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	git ls-files -z | xargs -0 $(VENV)/bin/codespell
	$(VENV)/bin/python docs/prose.py

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

format: $(INSTALLED)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(INSTALLED): setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) work_dirs/demo data/digits site
