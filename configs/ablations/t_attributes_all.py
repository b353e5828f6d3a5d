"""TAS-LoRA-T whose router reads and groups by MLP ratio, heads, width and depth.

tools/dist_train.sh configs/ablations/t_attributes_all.py 4

GPUs: 4, batch 4 x 256. Searched subnet in the T space: top-1 75.8 (published); not run here.
"""

_base_ = '../autoformer_t_moLE.py'

model = dict(
    backbone=dict(mole=dict(num_experts=36)),
    router=dict(attributes=['num_heads', 'mlp_ratio', 'embed_dim', 'depth']),
)
