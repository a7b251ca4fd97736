# Every target is a manifest, and every rule is the same sentence: concatenate the prerequisites,
# pipe them through a stage, keep what comes out once it is whole.
#
# A cell is a file name made of layers: runs/digits/mini/dino+clever.vit-mini.caug/linear.yaml.
# `make -n` shows the chain as shell, `-j2` runs cells side by side, an edited layer rebuilds the
# cells that use it. Keys and code are no prerequisites: after changing those, `make -B` a target.
#
#   DATA=digits|scenes|/a/folder   SCALE=mini|small|paper   SEED=0
#   KEYS_shard= KEYS_pretrain= KEYS_probe= KEYS_perturb=     more key=value for a stage
#   ON_pretrain='ssh gpu01', 'srun --gpus=4', 'flock gpu.lock'   where a stage runs (shared paths)
#   BIN=/some/venv/bin             use an environment of your own instead of $(VENV)

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SECONDARY:
.SECONDEXPANSION:
.SUFFIXES:
.PHONY: help reproduce-table2 table2-so-far test lint bench clean

SCALE ?= mini
SEED  ?= 0
VENV  ?= .venv
BIN   ?= $(abspath $(VENV))/bin
ready := $(if $(filter file,$(origin BIN)),$(VENV)/installed)

DATA_mini  := digits
DATA_small := cifar10
DATA_paper  = $(error SCALE=paper needs DATA=/path/to/imagenet)
DATA       ?= $(DATA_$(SCALE))

# At paper scale the probe's features are computed anew from new crops in every epoch.
CLASSES        ?= $(if $(filter paper,$(SCALE)),in100)
# Epochs for a table within 20 minutes on two cores (mini), or meant for one GPU (small).
pretrain_mini  := epochs=8
pretrain_small := epochs=30
probe_paper    := cached=false

cells := $(shell sed -n 's/.*cells:.*[{ ]$(SCALE): *\([^,} ]*\).*/\1/p' manifests/table/table2.yaml)
$(if $(cells),,$(error SCALE is '$(SCALE)'; it is mini, small or paper))

source = $(if $(findstring /,$(DATA)),$(abspath $(DATA)),$(DATA))
data  := $(subst /,-,$(patsubst /%,%,$(source)))
$(if $(word 2,$(DATA)),$(error DATA is '$(DATA)'; make knows no names with spaces))
R      := runs/$(data)/$(SCALE)$(if $(filter-out 0,$(SEED)),-seed$(SEED))
shards := runs/$(data)/shards$(CLASSES:%=-%).yaml

# $(call layers,dino+clever.vit-mini.caug+): the recipe layers that a name spells, in order. What is
# a layer as it stands is not taken apart at its plus signs.
folders = objective equivariance backbone views schedule
find    = $(wildcard $(folders:%=manifests/%/$1.yaml))
layer   = $(or $(call find,$1),$(error no layer named '$1' in $(folders:%=manifests/%)))
layers  = $(foreach part,$(subst ., ,$1),$(or $(call find,$(part)),$(foreach \
          l,$(subst +, ,$(part)),$(call layer,$l))))

# $(call stage,NAME,KEYS): all prerequisites in, one manifest out, which appears only once whole.
define stage
@mkdir -p "$(@D)"
cat $^ | $(call run,$1,-,$2) > $@~ && mv $@{~,}
endef
run = $(strip $(ON_$1) "$(BIN)/equi-$1" $2 $3 $(KEYS_$1) -o "$(abspath $(basename $@))")

# --- The chain -------------------------------------------------------------------------------

$(shards): | $(ready)
	@mkdir -p "$(@D)"
	$(call run,shard,$(source),$(CLASSES:%=classes=%)) < /dev/null > $@~ && mv $@{~,}

# A run that was interrupted and has saved (exit code 75) goes on where it was.
$R/%/pretrain.yaml: $(shards) $$(call layers,$$*) | $(ready)
	@mkdir -p "$(@D)"
	until cat $^ | $(call run,pretrain,-,seed=$(SEED) $(pretrain_$(SCALE))) > $@~; \
	do code=$$?; [ $$code = 75 ] || exit $$code; done; mv $@{~,}

$R/%/linear.yaml: $R/%/pretrain.yaml manifests/probe/linear.yaml | $(ready)
	$(call stage,probe,$(probe_$(SCALE)))

$R/%/knn.yaml: $R/%/pretrain.yaml manifests/probe/knn.yaml | $(ready)
	$(call stage,probe)

$R/%/grid.yaml: $R/%/linear.yaml manifests/perturb/grid.yaml | $(ready)
	$(call stage,perturb)

# The two references: the same backbone with random weights, and the pictures themselves.
$R/random.%/linear.yaml: $(shards) $$(call layers,$$*) manifests/probe/linear.yaml | $(ready)
	$(call stage,probe,encoder=random $(probe_$(SCALE)))

$R/pixels/linear.yaml: $(shards) manifests/probe/linear.yaml | $(ready)
	$(call stage,probe,encoder=pixels $(probe_$(SCALE)))

# --- Tables ----------------------------------------------------------------------------------

$R/table2.md: $(cells:%=$R/%/linear.yaml) manifests/table/table2.yaml | $(ready)
	cat $^ | "$(BIN)/equi-report" table2 - scale=$(SCALE) -o $(@D) > $@~ && mv $@{~,}

reproduce-table2: $R/table2.md  ## pretrain, probe and tabulate every cell of Table 2 at this SCALE
	@cat $<

table2-so-far: | $(ready)  ## the table with the cells that are done
	@cat manifests/table/table2.yaml $(wildcard $(cells:%=$R/%/linear.yaml)) | "$(BIN)/equi-report" table2 - scale=$(SCALE)

# --- The house -------------------------------------------------------------------------------

PYTHON ?= python3

# The stamp is written last, so that an installation which was cut short is done again.
$(VENV)/installed: pyproject.toml $(wildcard equitools/augment/native/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "equitools needs Python 3.11 or newer: make PYTHON=python3.12 …" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $@

test: lint  ## set up everything, check the code, run the tests
	unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES VENV PYTHON; \
	PATH="$(BIN):$$PATH" OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} "$(BIN)/python" -m pytest -n 2

lint: | $(ready)  ## ruff and mypy
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy" equitools stages

# PHOTOS=/a/folder/of/jpegs replaces the made pictures; the peers are installed for it.
bench: | $(ready)  ## benchmarks beside their peers, as one Markdown table
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	"$(BIN)/python" tests/bench/performance.py $(PHOTOS)

clean:  ## remove caches and builds; runs and the environment stay
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path '*/.venv/*' -type d -prune -exec rm -rf {} +

help:
	@sed -n 's/^\([a-z0-9-]*\):.*  ## \(.*\)/make \1	\2/p' Makefile
	@sed -n 's/^#   \([A-Z].*\)/  \1/p' Makefile
