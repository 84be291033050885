# The teacher, the pair of student and control over three seeds, and the ablation over the losses:
#
#   make -f train/models.mk teacher          an hour and a half on two CPU cores, once models/edge-t has been removed
#   make -f train/models.mk -j2 pairs        two runs side by side, a thread and a quarter of an hour each
#   make -f train/models.mk inherited        the control with the teacher's weights to begin with, a quarter of an hour
#   make -f train/models.mk -j2 ablation     seven short runs
#   make -f train/models.mk table            Markdown of all that is there
#   make -f train/models.mk qat              models/edge-t with 8-bit integers, plain and trained: two runs, half an hour
#   make -f train/models.mk matryoshka       models/edge-t with embeddings that may be cut, and without: two short runs
#
# What was interrupted goes on where it was. EDGECLIP_DATA names the folder that holds train/ and eval/.
BIN ?= .venv/bin
RANKS ?= 2
SEEDS = 0 1 2
ABLATION = loop.epochs=0 loop.steps=300
LOSSES = affinity feature interactive relational soft
TABLE = student control inherited ablation-random ablation-inherited $(LOSSES:%=ablation-%)

export EDGECLIP_DATA ?= ../shared/data

.PHONY: teacher pairs inherited ablation table qat matryoshka
.PRECIOUS: runs/%/scores.json runs/%.edgeclip
.DELETE_ON_ERROR:

teacher: models/edge-t
pairs: $(foreach seed,$(SEEDS),runs/student-$(seed)/scores.json runs/control-$(seed)/scores.json)
inherited: runs/inherited-0/scores.json
ablation: runs/ablation-random/scores.json runs/ablation-inherited/scores.json $(LOSSES:%=runs/ablation-%/scores.json)

table:
	$(BIN)/python -m edgeclip.train.summary $(patsubst %/scores.json,%,$(wildcard $(patsubst %,runs/%*/scores.json,teacher $(TABLE))))

runs/teacher/scores.json:
	$(BIN)/torchrun --nproc-per-node $(RANKS) -m edgeclip train teacher --resume loop.threads=1

# It is in the repository: that it is there is enough, however old it is.
models/edge-t:
	$(MAKE) -f train/models.mk runs/teacher/scores.json
	$(BIN)/python -m edgeclip.train.checkpoints.half runs/teacher/checkpoint $@

runs/views/store.json: | models/edge-t
	$(BIN)/edgeclip reinforce student --teacher models/edge-t -o runs/views --variants 2

runs/student-%/scores.json: | runs/views/store.json
	$(BIN)/edgeclip distill student --resume --quiet name=student-$* seed=$* loop.threads=1

runs/control-%/scores.json:
	$(BIN)/edgeclip train control --resume --quiet name=control-$* seed=$* loop.threads=1

runs/inherited-%/scores.json: | models/edge-t
	$(BIN)/edgeclip train control --resume --quiet name=inherited-$* seed=$* model.init_from=models/edge-t loop.threads=1

# What each target loses with scales that were measured, and with those that were trained. TensorRT has no zero points.
# `untrained` has the integers and the exporter of `qat`, and its scales before the first step.
qat: runs/qat/recovery.json runs/qat-symmetric/recovery.json runs/qat/training.json

runs/%/recovery.json: runs/plain.edgeclip runs/%.edgeclip
	$(BIN)/python -m edgeclip.benchmarks.recovery $< $^ --data $(EDGECLIP_DATA)/eval/wds_tinyimagenet --json > $@.part
	mv $@.part $@

runs/qat/training.json: runs/plain.edgeclip runs/qat-untrained.edgeclip runs/qat.edgeclip
	$(BIN)/python -m edgeclip.benchmarks.recovery $^ --data $(EDGECLIP_DATA)/eval/wds_tinyimagenet --json > $@.part
	mv $@.part $@

runs/plain.edgeclip: | models/edge-t
	$(BIN)/edgeclip export models/edge-t --target onnx -o $@
	$(BIN)/edgeclip export models/edge-t --target onnx,openvino,tensorrt --precision w8a8 --calib $(EDGECLIP_DATA)/train --allow-below-gate -o $@

runs/qat.edgeclip: runs/qat/scores.json
	$(BIN)/edgeclip export runs/qat/checkpoint --target onnx,openvino --precision w8a8 --force -o $@

runs/qat-untrained.edgeclip: runs/qat-untrained/scores.json
	$(BIN)/edgeclip export runs/qat-untrained/checkpoint --target onnx,openvino --precision w8a8 --force --allow-below-gate -o $@

runs/qat-symmetric.edgeclip: runs/qat-symmetric/scores.json
	$(BIN)/edgeclip export runs/qat-symmetric/checkpoint --target tensorrt --precision w8a8 --force -o $@

runs/qat/scores.json: | models/edge-t
	$(BIN)/edgeclip distill qat --resume --quiet loop.threads=1

runs/qat-untrained/scores.json: | models/edge-t
	$(BIN)/edgeclip distill qat --resume --quiet name=qat-untrained loop.steps=1 optimizer.lr=1e-12 loop.ema=0.0 loop.threads=1

runs/qat-symmetric/scores.json: | models/edge-t
	$(BIN)/edgeclip distill qat --resume --quiet name=qat-symmetric quantize.symmetric=true 'quantize.keep=["image.stem.spatial.conv"]' loop.threads=1

# Recall at each width, of the model that was trained for it, of one that has made the same steps without, and of the one before.
matryoshka: runs/matryoshka/embeddings.json runs/matryoshka-control/embeddings.json runs/matryoshka/before.json

runs/matryoshka/before.json: runs/plain.edgeclip | runs/matryoshka/scores.json
	$(BIN)/python -m edgeclip.benchmarks.embeddings $< --backend onnxruntime --data $(EDGECLIP_DATA)/eval --sets wds_flickr8k --cut 32 --cut 64 --cut 128 --json > $@.part
	mv $@.part $@

runs/%/embeddings.json: runs/%.edgeclip
	$(BIN)/python -m edgeclip.benchmarks.embeddings $< --data $(EDGECLIP_DATA)/eval --sets wds_flickr8k --cut 32 --cut 64 --cut 128 --json > $@.part
	mv $@.part $@

runs/%.edgeclip: runs/%/scores.json
	$(BIN)/edgeclip export runs/$*/checkpoint --target onnx --force -o $@

runs/matryoshka/scores.json: | models/edge-t
	$(BIN)/edgeclip distill matryoshka --resume --quiet loop.threads=1

runs/matryoshka-control/scores.json: | models/edge-t
	$(BIN)/edgeclip distill matryoshka --resume --quiet name=matryoshka-control 'model.matryoshka=[]' loop.threads=1

runs/ablation-random/scores.json:
	$(BIN)/edgeclip train control --resume --quiet name=ablation-random $(ABLATION) loop.threads=1

runs/ablation-inherited/scores.json: | models/edge-t
	$(BIN)/edgeclip train control --resume --quiet name=ablation-inherited model.init_from=models/edge-t $(ABLATION) loop.threads=1

runs/ablation-%/scores.json: | runs/views/store.json
	$(BIN)/edgeclip distill student --resume --quiet name=ablation-$* 'distill.weights={$*=$(if $(filter feature relational,$*),20.0,1.0)}' $(if $(filter soft,$*),distill.temperature=4.0) $(ABLATION) loop.threads=1
