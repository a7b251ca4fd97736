# Every target is a manifest, and every rule is the same sentence: concatenate the prerequisites,
# pipe them through a stage, keep what comes out once it is whole.
#
# A cell is a file name made of layers: runs/digits/mini/dino+clever.vit-mini.caug/linear.yaml.
# A part KEY@VALUE of it is a knob, its dots written as dashes: equivariance-ser-layer@2. A part
# in1k takes all classes of the data where SCALE=paper takes a hundred.
# `make -n` shows the chain as shell, `-j2` runs cells side by side, an edited layer rebuilds the
# cells that use it. Keys and code are no prerequisites: after changing those, `make -B` a target.
# manifests/table/ says which cells a table has, what it reads of them and how a figure is drawn;
# manifests/scale/ what a SCALE changes of recipes and evaluations.
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
.PHONY: help reproduce-table2 table2-so-far reproduce-clever test lint bench clean $(ser:%=reproduce-ser-%) $(clever:%=reproduce-%)

SCALE  ?= mini
SEED   ?= 0
VENV   ?= .venv
PYTHON ?= python3
BIN    ?= $(abspath $(VENV))/bin
ready  := $(if $(filter file,$(origin BIN)),$(VENV)/installed)
DATA_mini  := digits
DATA_small := cifar10
DATA_paper  = $(error SCALE=paper needs DATA=/path/to/imagenet)
DATA       ?= $(DATA_$(SCALE))
CLASSES    ?= $(if $(filter paper,$(SCALE)),in100)
$(if $(filter mini small paper,$(SCALE)),,$(error SCALE is '$(SCALE)'; it is mini, small or paper))
$(if $(word 2,$(DATA)),$(error DATA is '$(DATA)'; make knows no names with spaces))
source  = $(if $(findstring /,$(DATA)),$(abspath $(DATA)),$(DATA))
data   := $(subst /,-,$(patsubst /%,%,$(source)))
R      := runs/$(data)/$(SCALE)$(if $(filter-out 0,$(SEED)),-seed$(SEED))
some   := runs/$(data)/shards$(CLASSES:%=-%).yaml
whole  := runs/$(data)/shards.yaml
shards  = $(if $(filter in1k,$(subst ., ,$1)),$(whole),$(some))
# A folder without val/ gives up a tenth of each class; at paper scale the data say what val is.
held   := $(if $(findstring /,$(DATA)),$(if $(filter paper,$(SCALE)),,holdout=0.1))

# $(call scale,NAMES): the layers in which the SCALE speaks of these, laid on last. At mini, data of
# any size take the time of the digits: mini-folder speaks first, of all but the sets made here.
scales := $(if $(filter digits scenes,$(DATA)),,$(SCALE)-folder) $(SCALE)
scale   = $(foreach name,$1,$(firstword $(foreach from,$(scales),$(wildcard manifests/scale/$(from)/$(name).yaml))))
comma  := ,

# What make is told of must be there before hours are spent on an encoder.
labeled := CUB FLOWERS FOOD PETS
masked  := ECSSD DUTS OMRON
$(foreach name,$(labeled) $(masked) DAVIS LISTS,$(if $($(name)),$(if $(wildcard $($(name))/.),,$(error $(name)=$($(name)) is no folder))))

# $(call layers,dino+clever.vit-mini.caug+): the recipe layers that a name spells, in order. What is
# a layer as it stands is not taken apart at its plus signs. $(call knobs,…): its KEY@VALUE as key=value.
folders = objective equivariance backbone views schedule
find    = $(wildcard $(folders:%=manifests/%/$1.yaml))
layer   = $(or $(call find,$1),$(error no layer named '$1' in $(folders:%=manifests/%)))
parts   = $(filter-out in1k,$(subst ., ,$1))
layers  = $(foreach part,$(parts),$(if $(findstring @,$(part)),,$(or $(call find,$(part)),$(foreach l,$(subst +, ,$(part)),$(call layer,$l)))))
knobs   = $(foreach part,$(parts),$(if $(findstring @,$(part)),$(subst -,.,$(firstword $(subst @, ,$(part))))=$(lastword $(subst @, ,$(part)))))

# $(call produce,COMMAND): what it prints is the target, which appears only once whole.
# $(call stage,NAME,KEYS): all prerequisites in, one manifest out; random weights are said by a key.
define produce
@mkdir -p "$(@D)"
$1 > $@~ && mv $@{~,}
endef
run       = $(strip $(ON_$1) "$(BIN)/equi-$1" $2 $3 $(KEYS_$1) -o "$(abspath $(basename $@))")
stage     = $(call produce,cat $^ | $(call run,$1,-,$(untrained) $2))
untrained = $(if $(filter $R/random.%/pretrain.yaml,$<),encoder=random)

# --- The chain -------------------------------------------------------------------------------
runs/pets/shards.yaml: | $(ready)
	$(call produce,$(call run,shard,"$(abspath $(or $(PETS),$(error pets need PETS=)))") < /dev/null)
$(sort $(some) $(whole)): | $(ready)
	$(call produce,$(call run,shard,$(source),$(if $(filter $(whole),$@),,$(CLASSES:%=classes=%)) $(held)) < /dev/null)
# Other data than DATA, as equi-shard knows them by name.
runs/%/shards.yaml: | $(ready)
	$(call produce,$(call run,shard,$*) < /dev/null)
runs/scenes/saliency runs/scenes/video: | $(ready)
	"$(BIN)/equi-shard" scenes layout=$(@F) -o $@ < /dev/null

# A run that was interrupted and has saved (exit code 75) goes on where it was.
$R/%/pretrain.yaml: $$(call shards,$$*) $$(call layers,$$*) $$(call scale,pretrain $$(call parts,$$*)) | $(ready)
	@mkdir -p "$(@D)"
	until cat $^ | $(call run,pretrain,-,seed=$(SEED) $(call knobs,$*)) > $@~; \
	do code=$$?; [ $$code = 75 ] || exit $$code; done; mv $@{~,}
# References: the same backbone with random weights, which has shards and layers and no checkpoint,
# and the pictures themselves.
$R/random.%/pretrain.yaml: $$(call shards,$$*) $$(call layers,$$*)
	$(call produce,cat $^)
$R/pixels/linear.yaml: $(some) manifests/probe/linear.yaml $(call scale,linear) | $(ready)
	$(call stage,probe,encoder=pixels)

# $(call ask,NAME,WHAT IT READS,LAYER,KEYS): the evaluation NAME of every cell. Its layer is in
# manifests/, and the scale may have something to say of the layer or of the evaluation.
define evaluation
$R/%/$1.yaml: $2 manifests/$3.yaml $(call scale,$(notdir $3) $1) | $5 $(ready)
	$$(call stage,$(patsubst %/,%,$(dir $3)),$4)
endef
ask     = $(eval $(call evaluation,$1,$2,$3,$4,$5))
trained = $R/%/pretrain.yaml
$(call ask,linear,$(trained),probe/linear,$$(parts_of))
$(call ask,linear-ser,$(trained),probe/linear-ser)
$(call ask,mlp,$(trained),probe/mlp)
$(call ask,knn,$(trained),probe/knn)
$(call ask,embed,$(trained),probe/embed)
$(call ask,grid,$R/%/linear.yaml,perturb/grid)
$(call ask,sensitivity,$(trained),perturb/sensitivity)
$(call ask,equivariance,$(trained),perturb/equivariance)
$(call ask,layers,$(trained),perturb/layers)
# Table 7 asks the parts of CLeVER's representation one by one, and those of every block beside
# those of the released slicing.
parts_of = $(if $(findstring +clever,$*),parts=all$(comma)ir$(comma)ef)
$(call ask,linear-per-block,$(trained),probe/linear,split=per_block $$(parts_of))
$(call ask,grid-per-block,$R/%/linear-per-block.yaml,perturb/grid)
$(call ask,sensitivity-per-block,$(trained),perturb/sensitivity,tests.sensitivity.slicing=per_block)

# The same encoder on upright pictures of other things, which replace the shards: a manifest of
# shards, made of a folder where it has none. The whole network is tuned on them and judged too.
upright := $(if $(PETS),$(or $(wildcard $(PETS:%/=%)/manifest.yaml),runs/pets/shards.yaml),$(if $(filter paper,$(SCALE)),,runs/scenes/shards.yaml))
$(call ask,upright-linear,$(trained) $(upright),probe/linear)
$(call ask,upright-invariance,$R/%/upright-linear.yaml,perturb/invariance)
$(call ask,upright-finetune,$(trained) $(upright),transfer/finetune)
$(call ask,upright-finetuned,$R/%/upright-finetune.yaml,perturb/invariance,judge=finetuned)
$(call ask,upright-sensitivity,$(trained) $(upright),perturb/sensitivity,$(addprefix tests.sensitivity.,parts=all finetune=true))

# Data of other shapes: $R/CELL/EVALUATION-DATA.yaml, where make is told of DATA's folder; at mini
# made scenes stand beside them.
given    = $(foreach name,$1,$(if $($(name)),$(name))) $(if $(filter mini,$(SCALE)),scenes)
scenes   = $(if $(filter scenes,$2),runs/scenes/$(1:finetune=shards.yaml))
transfer = $(call ask,$1-$2,$(trained),transfer/$1,label=$2 data="$(abspath $(or $(scenes),$($2)))",$(scenes))
labels   = $(if $(LISTS),list="$(abspath $(LISTS))/$1percent.txt",fraction=$2)
$(foreach name,$(call given,$(labeled)),$(call transfer,finetune,$(name)))
$(foreach name,$(call given,$(masked)),$(call transfer,saliency,$(name)))
$(foreach name,$(call given,DAVIS),$(call transfer,video,$(name)))
$(call ask,semi-1,$(trained),transfer/semi,$(call labels,1,0.01))
$(call ask,semi-10,$(trained),transfer/semi,$(call labels,10,0.1))

# --- Tables ----------------------------------------------------------------------------------
# equi-report writes a file of reads_TABLE, the score files of a table, and draw_TABLE, the words
# for a figure. Make builds it before all else, under -n too, where a goal is one of these.
there := $(call given,$(labeled) $(masked) DAVIS) $(if $(upright),upright)
lacks := $(filter-out $(there),$(labeled) $(masked) DAVIS scenes upright)
lines := $(subst $() ,-,$(strip runs/tables/$(SCALE) $(there))).mk
list   = $(subst $() ,$(comma),$(strip $1))
$(lines): Makefile $(wildcard manifests/table/*.yaml) | $(ready)
	@mkdir -p "$(@D)"
	@"$(BIN)/equi-report" prerequisites scale=$(SCALE) $(addprefix lacks=,$(call list,$(lacks))) \
	 tables=$(call list,$(filter %.yaml,$^)) < /dev/null > $@~ && mv $@{~,}
$(if $(filter reproduce-% table2-so-far %.md %.html,$(MAKECMDGOALS)),$(eval include $(lines)))

# A figure is drawn in a folder beside its .md file, which names it; a table is compared.
draw_table1 = table1 -
draw_table2 = table2 - scale=$(SCALE) -o $(@D)
report = cat $^ | "$(BIN)/equi-report" $1
$R/%.md: $$(reads_$$*) manifests/table/%.yaml | $(ready)
	$(call produce,$(if $(needs_$*),echo "$(needs_$*)",$(call report,$(or $(draw_$*),compare - scale=$(SCALE)))))
	$(if $(draw_$*),,$(call report,compare - scale=$(SCALE) format=csv > $(@:.md=.csv)))

tables := $R/table1.md $R/table2.md $(patsubst %,$R/clever-%.md,$(filter-out table1,$(clever)))
$(foreach table,$(tables),$(eval reproduce-$(patsubst clever-%,%,$(basename $(notdir $(table)))): $(table)))
reproduce-table2:  ## pretrain, probe and tabulate every cell of Table 2 at this SCALE
	@cat $<
table2-so-far: | $(ready)  ## the table with the cells that are done
	@cat manifests/table/table2.yaml $(wildcard $(reads_table2)) | "$(BIN)/equi-report" table2 - scale=$(SCALE)
$(ser:%=reproduce-ser-%): reproduce-ser-%: $R/ser-%.md  ## the same for a table or figure of SER
	@cat $<
$(clever:%=reproduce-%):  ## the same for a table or figure of CLeVER
	@cat $<
reproduce-clever: $R/clever/page.html  ## every table and figure of CLeVER, and one page of them
	@echo $<
$R/clever/page.html: $(tables) $(reads_clever-figure1) | $(ready)
	cat $(filter %.yaml,$^) | "$(BIN)/equi-report" page - images=0 title="CLeVER at scale $(SCALE)" \
	 include=$(call list,$(tables)) -o $(@D) > /dev/null

# --- The house -------------------------------------------------------------------------------
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
