"""TAS-LoRA-T with subnets grouped by parameter count, with the same K as by architecture.

tools/dist_train.sh configs/ablations/t_group_params.py 4

GPUs: 4, batch 4 x 256. Searched subnet in the T space: top-1 75.6 (published); not run here.
"""

_base_ = '../autoformer_t_moLE.py'

model = dict(router=dict(grouping=dict(type='tas_lora.ParamCountGroups', seed=0)))
