# Needs Python 3.10+ and a shell; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
# One process per core, each with one thread: two of two threads on two cores wait for each other.
QUICK_TESTS = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --durations=15 -m "not slow"
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt

.PHONY: demo test check results clean

demo: .venv/base  ## register sample photographs with the default method
	$(BIN)/python examples/make_sample.py demo
	$(BIN)/tiepoint register demo/template.png demo/photographs --out demo/registered --overlays; \
	  test $$? -eq 2  # 2: the sample holds one unrelated picture, which must be refused
	@echo "report: $(CURDIR)/demo/registered/report.html"

test: .venv/dev  ## the quick tests
	$(QUICK_TESTS)

check: .venv/dev  ## all tests, lint, types
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/mypy
	$(QUICK_TESTS)
	$(BIN)/python -m pytest -q -m slow

results: .venv/dev  ## print the tables of docs/results.md again: make results DATA=../shared/data
	$(BIN)/python benchmarks/results.py $(DATA)

.venv/base: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) -e .
	touch $@

.venv/dev: .venv/base
	$(PIP) -e '.[dev]'
	touch $@

clean:
	rm -rf .venv demo build
