# The teacher, the pair of student and control over three seeds, and the ablation over the losses:
#
#   make -f train/models.mk teacher          an hour and a half on two CPU cores
#   make -f train/models.mk -j2 pairs        two runs side by side, a thread and a quarter of an hour each
#   make -f train/models.mk inherited        the control with the teacher's weights to begin with, a quarter of an hour
#   make -f train/models.mk -j2 ablation     seven short runs
#   make -f train/models.mk table            Markdown of all that is there
#
# What was interrupted goes on where it was. EDGECLIP_DATA names the folder that holds train/ and eval/.
BIN ?= .venv/bin
RANKS ?= 2
SEEDS = 0 1 2
ABLATION = loop.epochs=0 loop.steps=300
LOSSES = affinity feature interactive relational soft
TABLE = student control inherited ablation-random ablation-inherited $(LOSSES:%=ablation-%)

export EDGECLIP_DATA ?= ../shared/data

.PHONY: teacher pairs inherited ablation table
.PRECIOUS: runs/%/scores.json

teacher: models/edge-t
pairs: $(foreach seed,$(SEEDS),runs/student-$(seed)/scores.json runs/control-$(seed)/scores.json)
inherited: runs/inherited-0/scores.json
ablation: runs/ablation-random/scores.json runs/ablation-inherited/scores.json $(LOSSES:%=runs/ablation-%/scores.json)

table:
	$(BIN)/python -m edgeclip.train.summary $(patsubst %/scores.json,%,$(wildcard $(patsubst %,runs/%*/scores.json,teacher $(TABLE))))

runs/teacher/scores.json:
	$(BIN)/torchrun --nproc-per-node $(RANKS) -m edgeclip train teacher --resume loop.threads=1

models/edge-t: runs/teacher/scores.json
	$(BIN)/python -m edgeclip.train.checkpoints.half runs/teacher/checkpoint $@

runs/views/store.json: | models/edge-t
	$(BIN)/edgeclip reinforce student --teacher models/edge-t -o runs/views --variants 2

runs/student-%/scores.json: | runs/views/store.json
	$(BIN)/edgeclip distill student --resume --quiet name=student-$* seed=$* loop.threads=1

runs/control-%/scores.json:
	$(BIN)/edgeclip train control --resume --quiet name=control-$* seed=$* loop.threads=1

runs/inherited-%/scores.json: | models/edge-t
	$(BIN)/edgeclip train control --resume --quiet name=inherited-$* seed=$* model.init_from=models/edge-t loop.threads=1

runs/ablation-random/scores.json:
	$(BIN)/edgeclip train control --resume --quiet name=ablation-random $(ABLATION) loop.threads=1

runs/ablation-inherited/scores.json: | models/edge-t
	$(BIN)/edgeclip train control --resume --quiet name=ablation-inherited model.init_from=models/edge-t $(ABLATION) loop.threads=1

runs/ablation-%/scores.json: | runs/views/store.json
	$(BIN)/edgeclip distill student --resume --quiet name=ablation-$* 'distill.weights={$*=$(if $(filter feature relational,$*),20.0,1.0)}' $(if $(filter soft,$*),distill.temperature=4.0) $(ABLATION) loop.threads=1
