"""TAS-LoRA-T with rank and number of experts per layer: deeper blocks get more of both.

tools/dist_train.sh configs/ablations/t_per_layer.py 4

GPUs: 4, batch 4 x 256. Searched subnet in the T space: top-1 not run; the paper names this as
an open question and gives no figure. Mean rank 8, on average 8 of 12 experts. The scores grow with
depth, as MoLA finds that higher layers need more experts. For measured scores, run
tools/analysis/layer_importance.py and add --cfg-options model.backbone.mole.importance=FILE.
"""

_base_ = '../autoformer_t_moLE.py'

model = dict(
    backbone=dict(
        mole=dict(layer_experts=8, importance=[[block] * 4 for block in range(1, 15)]),
    )
)
