"""TAS-LoRA-T with blocks grouped at random (seeded), with the same K as by architecture.

tools/dist_train.sh configs/ablations/t_group_random.py 4

GPUs: 4, batch 4 x 256. Searched subnet in the T space: top-1 75.5 (published); not run here.
"""

_base_ = '../autoformer_t_moLE.py'

model = dict(router=dict(grouping=dict(type='tas_lora.RandomGroups', seed=0)))
