# Every target is a manifest, and every rule is the same sentence: concatenate the prerequisites,
# pipe them through a stage, keep what comes out once it is whole.
#
# A cell is a file name made of layers: runs/digits/mini/dino+clever.vit-mini.caug/linear.yaml.
# A part KEY@VALUE of it is a knob, its dots written as dashes: equivariance-ser-layer@2. A part
# in1k takes all classes of the data where SCALE=paper takes a hundred.
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
ser := table1 table2 table3 table4 table5 figure3 figure4
.DELETE_ON_ERROR:
.SECONDARY:
.SECONDEXPANSION:
.SUFFIXES:
.PHONY: help reproduce-table2 table2-so-far test lint bench clean $(ser:%=reproduce-ser-%)

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
# Epochs and widths for tables within 20 minutes on two cores (mini), or meant for one GPU (small).
pretrain_mini   = epochs=$(if $(findstring .ser-mini,$*),5,8)
pretrain_small := epochs=30
probe_paper    := cached=false
mlp_mini       := epochs=20 hidden=256
layers_mini    := tests.layers.epochs=10 tests.layers.hidden=256
mlp_paper      := $(probe_paper)

# $(call cells_of,TABLE): the cells of a table at this SCALE.
cells_of = $(shell sed -n 's/.*cells:.*[{ ]$(SCALE): *\([^,} ]*\).*/\1/p' manifests/table/$1.yaml)
cells   := $(call cells_of,table2)
$(if $(cells),,$(error SCALE is '$(SCALE)'; it is mini, small or paper))

source = $(if $(findstring /,$(DATA)),$(abspath $(DATA)),$(DATA))
data  := $(subst /,-,$(patsubst /%,%,$(source)))
$(if $(word 2,$(DATA)),$(error DATA is '$(DATA)'; make knows no names with spaces))
R      := runs/$(data)/$(SCALE)$(if $(filter-out 0,$(SEED)),-seed$(SEED))
some   := runs/$(data)/shards$(CLASSES:%=-%).yaml
whole  := runs/$(data)/shards.yaml
shards  = $(if $(filter in1k,$(subst ., ,$1)),$(whole),$(some))

# $(call layers,dino+clever.vit-mini.caug+): the recipe layers that a name spells, in order. What is
# a layer as it stands is not taken apart at its plus signs. $(call knobs,…): its KEY@VALUE as key=value.
folders = objective equivariance backbone views schedule
find    = $(wildcard $(folders:%=manifests/%/$1.yaml))
layer   = $(or $(call find,$1),$(error no layer named '$1' in $(folders:%=manifests/%)))
parts   = $(filter-out in1k,$(subst ., ,$1))
knob    = $(findstring @,$1)
layers  = $(foreach part,$(parts),$(if $(call knob,$(part)),,$(or $(call find,$(part)),$(foreach \
          l,$(subst +, ,$(part)),$(call layer,$l)))))
knobs   = $(foreach part,$(parts),$(if $(call knob,$(part)),$(subst -,.,$(word 1,$(subst @, \
          ,$(part))))=$(word 2,$(subst @, ,$(part)))))

# $(call stage,NAME,KEYS): all prerequisites in, one manifest out, which appears only once whole.
define stage
@mkdir -p "$(@D)"
cat $^ | $(call run,$1,-,$2) > $@~ && mv $@{~,}
endef
run = $(strip $(ON_$1) "$(BIN)/equi-$1" $2 $3 $(KEYS_$1) -o "$(abspath $(basename $@))")

# --- The chain -------------------------------------------------------------------------------

$(sort $(some) $(whole)): | $(ready)
	@mkdir -p "$(@D)"
	$(call run,shard,$(source),$(if $(filter $(whole),$@),,$(CLASSES:%=classes=%))) < /dev/null > $@~ && mv $@{~,}

# A run that was interrupted and has saved (exit code 75) goes on where it was.
$R/%/pretrain.yaml: $$(call shards,$$*) $$(call layers,$$*) | $(ready)
	@mkdir -p "$(@D)"
	until cat $^ | $(call run,pretrain,-,seed=$(SEED) $(pretrain_$(SCALE)) $(call knobs,$*)) > $@~; \
	do code=$$?; [ $$code = 75 ] || exit $$code; done; mv $@{~,}

# A reference: the same backbone with random weights has shards and layers, and no checkpoint.
$R/random.%/pretrain.yaml: $$(call shards,$$*) $$(call layers,$$*)
	@mkdir -p "$(@D)"
	cat $^ > $@~ && mv $@{~,}
untrained = $(if $(filter random.%,$*),encoder=random)

$R/%/linear.yaml: $R/%/pretrain.yaml manifests/probe/linear.yaml | $(ready)
	$(call stage,probe,$(untrained) $(probe_$(SCALE)))

$R/%/linear-ser.yaml: $R/%/pretrain.yaml manifests/probe/linear-ser.yaml | $(ready)
	$(call stage,probe,$(untrained) $(probe_$(SCALE)))

$R/%/mlp.yaml: $R/%/pretrain.yaml manifests/probe/mlp.yaml | $(ready)
	$(call stage,probe,$(untrained) $(mlp_$(SCALE)))

$R/%/knn.yaml: $R/%/pretrain.yaml manifests/probe/knn.yaml | $(ready)
	$(call stage,probe,$(untrained))

$R/%/embed.yaml: $R/%/pretrain.yaml manifests/probe/embed.yaml | $(ready)
	$(call stage,probe,$(untrained))

$R/%/grid.yaml: $R/%/linear.yaml manifests/perturb/grid.yaml | $(ready)
	$(call stage,perturb)

$R/%/equivariance.yaml: $R/%/pretrain.yaml manifests/perturb/equivariance.yaml | $(ready)
	$(call stage,perturb,$(untrained))

$R/%/layers.yaml: $R/%/pretrain.yaml manifests/perturb/layers.yaml | $(ready)
	$(call stage,perturb,$(untrained) $(layers_$(SCALE)))

# The other reference: the pictures themselves.
$R/pixels/linear.yaml: $(some) manifests/probe/linear.yaml | $(ready)
	$(call stage,probe,encoder=pixels $(probe_$(SCALE)))

# --- Tables ----------------------------------------------------------------------------------

$R/table2.md: $(cells:%=$R/%/linear.yaml) manifests/table/table2.yaml | $(ready)
	cat $^ | "$(BIN)/equi-report" table2 - scale=$(SCALE) -o $(@D) > $@~ && mv $@{~,}

reproduce-table2: $R/table2.md  ## pretrain, probe and tabulate every cell of Table 2 at this SCALE
	@cat $<

table2-so-far: | $(ready)  ## the table with the cells that are done
	@cat manifests/table/table2.yaml $(wildcard $(cells:%=$R/%/linear.yaml)) | "$(BIN)/equi-report" table2 - scale=$(SCALE)

# What a table of SER reads of each of its cells.
reads_table1  := linear-ser
reads_table2  := linear-ser
reads_table3  := mlp knn
reads_table4  := linear-ser equivariance
reads_table5  := layers
reads_figure3 := linear-ser
reads_figure4 := embed
results = $(foreach read,$(reads_$1),$(foreach cell,$(call cells_of,ser-$1),$R/$(cell)/$(read).yaml))

$R/ser-figure4.md: $(call results,figure4) | $(ready)
	cat $^ | "$(BIN)/equi-report" tsne - -o $(@:.md=) > $@~ && mv $@{~,}

$R/ser-%.md: $$(call results,$$*) manifests/table/ser-%.yaml | $(ready)
	cat $^ | "$(BIN)/equi-report" compare - scale=$(SCALE) format=csv > $(@:.md=.csv)
	cat $^ | "$(BIN)/equi-report" compare - scale=$(SCALE) > $@~ && mv $@{~,}

$(ser:%=reproduce-ser-%): reproduce-ser-%: $R/ser-%.md  ## the same for a table or figure of SER
	@cat $<

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
	@sed -n -e 's/^\([a-z0-9-]*\):.*  ## \(.*\)/make \1	\2/p' \
	 -e 's/^$$(ser:%.*  ## \(.*\)/make reproduce-ser-NAME	\1: $(ser)/p' Makefile
	@sed -n 's/^#   \([A-Z].*\)/  \1/p' Makefile
