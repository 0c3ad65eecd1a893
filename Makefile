# reelquant: make export (the road, on the demo checkpoints) and make test are all that a fresh machine needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

MODEL ?=
# A folder's own name, however it is written; a hub id with its owner, so that two models have two names.
NAME = $(shell if [ -d "$(MODEL)" ]; then basename "$$(cd "$(MODEL)" && pwd -P)"; else printf %s "$(MODEL)" | tr '/ ' '--'; fi)
OUT ?= build/$(NAME)-$(PRECISION)
PRECISION ?= fp32
REPLACE ?=
ENGINE ?= openvino
GPU ?=
SIZE ?=
DATA ?= general
TEXT_WEIGHTS ?=
CALIBRATION_SIZE ?=
ifneq ($(FRAMES)$(CALIBRATION_FRAMES),)
$(error FRAMES= and CALIBRATION_FRAMES= are part of the sizes: write SIZE=49x480x720 and CALIBRATION_SIZE=9x256x256)
endif

TASKS := t2v i2v
PRECISIONS := fp32 int8 fp8
PROMPT_t2v := a red circle moves right on a white background
PROMPT_i2v := a blue triangle moves up on a grey background

.PHONY: help export test test-slow test-gpu lint format docs demo-model peers bench clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo
	@echo "make export MODEL=dir-or-hub-id OUT=dir PRECISION=fp32|fp16|bf16|int8|fp8|mxfp8|nvfp4 ENGINE=openvino|onnxruntime|tensorrt-rtx GPU=sm89 SIZE=49x480x720 TEXT_WEIGHTS=fp32|bf16|int8 DATA=set CALIBRATION_SIZE=9x256x256 REPLACE=1"
	@echo "Without MODEL, the embedded demo checkpoints are exported in every precision and a clip is rendered from each."

$(READY): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[export,openvino,onnxruntime,tensorrt-rtx,sign,docs,notebook,dev]'
	@touch $@

ifeq ($(MODEL),)
export: $(foreach task,$(TASKS),$(foreach precision,$(PRECISIONS),export-$(task)-$(precision)))  ## Checkpoint -> bundles -> clips (demo without MODEL=)
	@echo && ls -l build/clips
else
export: $(READY)
	$(BIN)/reelquant export "$(MODEL)" "$(OUT)" --precision $(PRECISION) --engine $(ENGINE) --data "$(DATA)" $(if $(REPLACE),--replace) $(if $(TEXT_WEIGHTS),--text-weights $(TEXT_WEIGHTS)) $(if $(GPU),--gpu $(GPU)) \
	  $(if $(SIZE),--size $(SIZE)) $(if $(CALIBRATION_SIZE),--calibration-size $(CALIBRATION_SIZE))
endif

define demo_export
.PHONY: export-$(1)-$(2)
export-$(1)-$(2): $(READY)
	$(BIN)/reelquant export demo/checkpoints/$(1) build/demo-$(1)-$(2) --precision $(2) --engine $(ENGINE) \
	  --data demo --work build/stages/demo-$(1) --replace $(if $(SIZE),--size $(SIZE))
	$(BIN)/reelquant generate build/demo-$(1)-$(2) "$(PROMPT_$(1))" $(if $(filter i2v,$(1)),--image demo/first_frame.png) \
	  --seed 7 --engine $(ENGINE) -o build/clips/demo-$(1)-$(2).mp4
endef
$(foreach task,$(TASKS),$(foreach precision,$(PRECISIONS),$(eval $(call demo_export,$(task),$(precision)))))

# Two processes: most of the work is one thread's. A file's tests stay together, since they share what they build, and the
# files that take longest come first (tests/conftest.py).
test: lint  ## Lint, types and tests
	$(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(READY)  ## The tests that take many minutes
	$(BIN)/pytest -q -m slow

test-gpu: $(READY)  ## The tests that need a CUDA device
	$(BIN)/pytest -q -m gpu

lint: $(READY)  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## Let ruff rewrite the layout
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## The documentation as a site, in build/docs; a dead link is an error
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/docs

demo-model: $(READY)  ## Train the demo checkpoints again (work for a GPU; resumable)
	$(BIN)/python -m demo.train

peers: $(READY)  ## The environment of the quantizers that ours is compared with
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt

bench: $(READY)  ## Measure precisions, a step and whole clips on this CPU beside diffusers (about an hour, alone on the machine)
	$(BIN)/python -m benchmarks.precisions
	$(BIN)/python -m benchmarks.cpu_transformer
	$(BIN)/python -m benchmarks.cpu_clip demo
	$(BIN)/python -m benchmarks.cpu_clip 2b-width

clean:  ## Remove what was built (not the environment)
	rm -rf build
