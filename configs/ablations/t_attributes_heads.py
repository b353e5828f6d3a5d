"""TAS-LoRA-T whose router reads and groups by heads only.

tools/dist_train.sh configs/ablations/t_attributes_heads.py 4

GPUs: 4, batch 4 x 256. Searched subnet in the T space: top-1 75.2 (published); not run here.
"""

_base_ = '../autoformer_t_moLE.py'

model = dict(backbone=dict(mole=dict(num_experts=2)), router=dict(attributes=['num_heads']))
