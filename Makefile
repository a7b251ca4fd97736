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
#   PETS= CUB= FLOWERS= FOOD=      shards, or a folder with train/ and val/, for Tables 5, 6 and 8
#   ECSSD= DUTS= OMRON= DAVIS=     folders with masks, for Table 9 and Figure 4
#   LISTS=                         a folder with SimCLR's 1percent.txt and 10percent.txt, for Table 8
#   KEYS_shard= KEYS_pretrain= KEYS_probe= KEYS_perturb= KEYS_transfer=   more key=value for a stage
#   ON_pretrain='ssh gpu01', 'srun --gpus=4', 'flock gpu.lock'   where a stage runs (shared paths)
#   BIN=/some/venv/bin             use an environment of your own instead of $(VENV)

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help
ser    := table1 table2 table3 table4 table5 figure3 figure4
clever := $(foreach n,1 3 4 5 6 7 8 9 10,table$n) $(foreach n,1 3 4 5 6 7 8,figure$n)
.DELETE_ON_ERROR:
.SECONDARY:
.SECONDEXPANSION:
.SUFFIXES:
.PHONY: help reproduce-table2 table2-so-far reproduce-clever test lint bench clean
.PHONY: $(ser:%=reproduce-ser-%) $(clever:%=reproduce-%)

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
# A folder of any size takes the time of the digits: their steps, and a limit to a probe's pictures.
embedded        = $(filter digits scenes,$(DATA))
# A folder without val/ gives up a tenth of each class; at paper scale the data say what val is.
held            = $(if $(findstring /,$(DATA)),$(if $(filter paper,$(SCALE)),,holdout=0.1))
short           = $(findstring .ser-mini,$*)
pretrain_mini   = $(if $(embedded),epochs=$(if $(short),5,8),steps=$(if $(short),112,180))
pretrain_small := epochs=30
probe_mini      = $(if $(embedded),,limit=2000)
probe_paper    := cached=false
mlp_mini        = epochs=20 hidden=256 $(probe_mini)
layers_mini    := tests.layers.epochs=10 tests.layers.hidden=256
mlp_paper      := $(probe_paper)
tuning_mini    := epochs=10 batch_size=32 lr=0.1 seeds=0
turns          := $(addprefix tests.sensitivity.,parts=all finetune=true)
turns_mini     := $(addprefix tests.sensitivity.,tuning_epochs=3 tuning_lr=0.03 seeds=0)
# Table 7 asks the parts of CLeVER's representation one by one.
parts_of        = $(if $(findstring +clever,$1),parts=all$(comma)ir$(comma)ef)
comma          := ,

# $(call cells_of,TABLE): the cells of a table at this SCALE.
cells_of = $(shell sed -n 's/.*cells:.*[{ ]$(SCALE): *\([^,} ]*\).*/\1/p' manifests/table/$1.yaml)
cells   := $(call cells_of,table2)
$(if $(cells),,$(error SCALE is '$(SCALE)'; it is mini, small or paper))

# What make is told of must be there before hours are spent on an encoder.
told := PETS CUB FLOWERS FOOD ECSSD DUTS OMRON DAVIS LISTS
$(foreach name,$(told),$(if $($(name)),$(if $(wildcard $($(name))/.),,$(error $(name)=$($(name)) is no folder))))

# Upright pictures for Tables 5 and 6: a manifest of shards, made of a folder where it has none.
own_shards := $(if $(PETS),$(wildcard $(PETS:%/=%)/manifest.yaml))
upright := $(if $(PETS),$(or $(own_shards),runs/pets/shards.yaml),$(if $(filter paper,$(SCALE)),,runs/scenes/shards.yaml))

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

runs/pets/shards.yaml: | $(ready)
	@mkdir -p "$(@D)"
	$(call run,shard,"$(abspath $(or $(PETS),$(error pets need PETS=)))") < /dev/null > $@~ && mv $@{~,}

# Other data than DATA, as equi-shard knows them by name.
runs/%/shards.yaml: | $(ready)
	@mkdir -p "$(@D)"
	$(call run,shard,$*) < /dev/null > $@~ && mv $@{~,}

$(sort $(some) $(whole)): | $(ready)
	@mkdir -p "$(@D)"
	$(call run,shard,$(source),$(if $(filter $(whole),$@),,$(CLASSES:%=classes=%)) $(held)) < /dev/null > $@~ && mv $@{~,}

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
	$(call stage,probe,$(untrained) $(call parts_of,$*) $(probe_$(SCALE)))

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

$R/%/sensitivity.yaml: $R/%/pretrain.yaml manifests/perturb/sensitivity.yaml | $(ready)
	$(call stage,perturb,$(untrained))

$R/%/equivariance.yaml: $R/%/pretrain.yaml manifests/perturb/equivariance.yaml | $(ready)
	$(call stage,perturb,$(untrained))

$R/%/layers.yaml: $R/%/pretrain.yaml manifests/perturb/layers.yaml | $(ready)
	$(call stage,perturb,$(untrained) $(layers_$(SCALE)))

# The other reference: the pictures themselves.
$R/pixels/linear.yaml: $(some) manifests/probe/linear.yaml | $(ready)
	$(call stage,probe,encoder=pixels $(probe_$(SCALE)))

# The same encoder on upright pictures of other things: what comes later replaces the shards.
$R/%/upright-linear.yaml: $R/%/pretrain.yaml $(upright) manifests/probe/linear.yaml | $(ready)
	$(call stage,probe,$(untrained) $(probe_$(SCALE)))

$R/%/upright-invariance.yaml: $R/%/upright-linear.yaml manifests/perturb/invariance.yaml | $(ready)
	$(call stage,perturb)

# The whole network tuned on the upright pictures, and judged on turned ones.
$R/%/upright-finetune.yaml: $R/%/pretrain.yaml $(upright) manifests/transfer/finetune.yaml | $(ready)
	$(call stage,transfer,$(untrained) $(tuning_$(SCALE)))

$R/%/upright-finetuned.yaml: $R/%/upright-finetune.yaml manifests/perturb/invariance.yaml | $(ready)
	$(call stage,perturb,judge=finetuned)

$R/%/upright-sensitivity.yaml: $R/%/pretrain.yaml $(upright) manifests/perturb/sensitivity.yaml | $(ready)
	$(call stage,perturb,$(untrained) $(turns) $(turns_$(SCALE)))

# The parts of every block, beside those of the released slicing.
$R/%/linear-per-block.yaml: $R/%/pretrain.yaml manifests/probe/linear.yaml | $(ready)
	$(call stage,probe,$(untrained) split=per_block $(call parts_of,$*) $(probe_$(SCALE)))

$R/%/grid-per-block.yaml: $R/%/linear-per-block.yaml manifests/perturb/grid.yaml | $(ready)
	$(call stage,perturb)

$R/%/sensitivity-per-block.yaml: $R/%/pretrain.yaml manifests/perturb/sensitivity.yaml | $(ready)
	$(call stage,perturb,$(untrained) tests.sensitivity.slicing=per_block)

# Data of other shapes: $R/CELL/EVALUATION-DATA.yaml, where make is told of DATA's folder.
define of_data
$R/%/$1-$2.yaml: $R/%/pretrain.yaml manifests/transfer/$1.yaml | $(if $(filter scenes,$2),$(scenes_$1)) $(ready)
	$$(call stage,transfer,$$(untrained) $3)
endef
scenes_finetune := runs/scenes/shards.yaml
scenes_saliency := runs/scenes/saliency
scenes_video    := runs/scenes/video
labeled  := CUB FLOWERS FOOD PETS
masked   := ECSSD DUTS OMRON
stand_in := $(if $(filter mini,$(SCALE)),scenes)
given     = $(foreach name,$1,$(if $($(name)),$(name)))
folder    = label=$2 data="$(abspath $(if $(filter scenes,$2),$(scenes_$1),$($2)))"
$(foreach d,$(call given,$(labeled)) $(stand_in),$(eval $(call of_data,finetune,$d,$(call folder,finetune,$d) $(tuning_$(SCALE)))))
$(foreach d,$(call given,$(masked)) $(stand_in),$(eval $(call of_data,saliency,$d,$(call folder,saliency,$d))))
$(foreach d,$(call given,DAVIS) $(stand_in),$(eval $(call of_data,video,$d,$(call folder,video,$d))))
labels = $(if $(LISTS),list="$(abspath $(LISTS))/$1percent.txt",fraction=$2) $(tuning_$(SCALE))
$(eval $(call of_data,semi,1,$$(call labels,1,0.01)))
$(eval $(call of_data,semi,10,$$(call labels,10,0.1)))

$(scenes_saliency) $(scenes_video): | $(ready)
	"$(BIN)/equi-shard" scenes layout=$(@F) -o $@ < /dev/null

# --- Tables ----------------------------------------------------------------------------------

$R/table2.md: $(cells:%=$R/%/linear.yaml) manifests/table/table2.yaml | $(ready)
	@mkdir -p "$(@D)"
	cat $^ | "$(BIN)/equi-report" table2 - scale=$(SCALE) -o $(@D) > $@~ && mv $@{~,}

reproduce-table2: $R/table2.md  ## pretrain, probe and tabulate every cell of Table 2 at this SCALE
	@cat $<

table2-so-far: | $(ready)  ## the table with the cells that are done
	@cat manifests/table/table2.yaml $(wildcard $(cells:%=$R/%/linear.yaml)) | "$(BIN)/equi-report" table2 - scale=$(SCALE)

# What a table or figure reads of each of its cells.
reads_ser-table1  := linear-ser
reads_ser-table2  := linear-ser
reads_ser-table3  := mlp knn
reads_ser-table4  := linear-ser equivariance
reads_ser-table5  := layers
reads_ser-figure3 := linear-ser
reads_ser-figure4 := embed
reads_table1          := pretrain
reads_clever-table3   := grid
reads_clever-table4   := grid
reads_clever-table5   := $(if $(upright),upright-invariance upright-finetuned)
reads_clever-table6   := $(if $(upright),upright-sensitivity)
reads_clever-table7   := grid sensitivity
reads_clever-table8   := semi-1 semi-10 $(patsubst %,finetune-%,$(call given,$(labeled)) $(stand_in))
reads_clever-table9   := $(patsubst %,video-%,$(call given,DAVIS) $(stand_in)) \
                         $(patsubst %,saliency-%,$(call given,$(masked)) $(stand_in))
reads_clever-table10  := grid
reads_clever-figure1  := grid
reads_clever-figure3  := pretrain
shown_figure4         := $(firstword $(call given,ECSSD DUTS OMRON) $(stand_in))
reads_clever-figure4  := $(if $(shown_figure4),saliency-$(shown_figure4))
reads_clever-figure5  := linear
reads_clever-figure6  := pretrain
reads_clever-figure7  := pretrain
reads_clever-figure8  := pretrain
results = $(foreach read,$(reads_$1),$(foreach cell,$(call cells_of,$1),$R/$(cell)/$(read).yaml))

# How a figure is drawn; the picture goes into a folder beside its .md file, which names it.
pixels_paper  := size=448
draw_figure1  := robustness
draw_figure3  := attention images=3 changes=original heads=mean $(pixels_$(SCALE))
draw_figure4   = sheet folders=$(subst $() ,$(comma),$(patsubst %.yaml,%/overlays,$(call results,clever-figure4)))
draw_figure5  := sweep keys=backbone.split,objective.out_dim,equivariance.clever.regularization
draw_figure6  := attention images=1 first=0 $(pixels_$(SCALE))
draw_figure7  := attention images=1 first=1 $(pixels_$(SCALE))
draw_figure8  := attention images=1 first=2 $(pixels_$(SCALE))

$R/table1.md: $(call results,table1) manifests/table/table1.yaml | $(ready)
	@mkdir -p "$(@D)"
	cat $^ | "$(BIN)/equi-report" table1 - > $@~ && mv $@{~,}

$R/ser-figure4.md: $(call results,ser-figure4) | $(ready)
	@mkdir -p "$(@D)"
	cat $^ | "$(BIN)/equi-report" tsne - -o $(@:.md=) > $@~ && mv $@{~,}

define compared
@mkdir -p "$(@D)"
cat $^ | "$(BIN)/equi-report" compare - scale=$(SCALE) format=csv > $(@:.md=.csv)
cat $^ | "$(BIN)/equi-report" compare - scale=$(SCALE) > $@~ && mv $@{~,}
endef
$R/ser-%.md: $$(call results,ser-$$*) manifests/table/ser-%.yaml | $(ready)
	$(compared)

$R/clever-%.md: $$(call results,clever-$$*) manifests/table/clever-%.yaml | $(ready)
	$(compared)

split7 := $(foreach cell,$(call cells_of,clever-table7),$(if $(findstring +clever,$(cell)),$R/$(cell)))
$R/clever-table7.md: $(split7:%=%/grid-per-block.yaml) $(split7:%=%/sensitivity-per-block.yaml)

$R/clever-figure%.md: $$(call results,clever-figure$$*) manifests/table/clever-figure%.yaml | $(ready)
	@mkdir -p "$(@D)"
	cat $^ | "$(BIN)/equi-report" $(draw_figure$*) - -o $(@:.md=) > $@~ && mv $@{~,}

$R/clever-figure4.md: $(call results,clever-figure4) manifests/table/clever-figure4.yaml | $(ready)
	@mkdir -p "$(@D)"
	$(if $(shown_figure4),cat $^ | "$(BIN)/equi-report" $(draw_figure4) - -o $(@:.md=),\
	echo "Figure 4 needs ECSSD=, DUTS= or OMRON=, a folder of pictures and masks.") > $@~ && mv $@{~,}

$(ser:%=reproduce-ser-%): reproduce-ser-%: $R/ser-%.md  ## the same for a table or figure of SER
	@cat $<

reproduce-table1: $R/table1.md
$(foreach one,$(filter-out table1,$(clever)),$(eval reproduce-$(one): $R/clever-$(one).md))
$(clever:%=reproduce-%):  ## the same for a table or figure of CLeVER
	@cat $<

said := $R/table1.md $R/table2.md $(patsubst %,$R/clever-%.md,$(filter-out table1,$(clever)))
$R/clever/page.html: $(said) $(call results,clever-figure1) | $(ready)
	cat $(filter %.yaml,$^) | "$(BIN)/equi-report" page - images=0 title="CLeVER at scale $(SCALE)" \
	 include=$(subst $() ,$(comma),$(said)) -o $(@D) > /dev/null

reproduce-clever: $R/clever/page.html  ## every table and figure of CLeVER, and one page of them
	@echo $<

# --- The house -------------------------------------------------------------------------------

PYTHON ?= python3

# The stamp is written last, so that an installation which was cut short is done again.
$(VENV)/installed: pyproject.toml $(wildcard equitools/augment/native/*.[ch])
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
	 -e 's/^$$(ser:%.*  ## \(.*\)/make reproduce-ser-NAME	\1: $(ser)/p' \
	 -e 's/^$$(clever:%.*  ## \(.*\)/make reproduce-NAME	\1: $(clever)/p' Makefile
	@sed -n 's/^#   \([A-Z].*\)/  \1/p' Makefile
