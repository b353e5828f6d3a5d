"""As free.py, an expert for each size of subnet, in all its blocks.

python run.py --parts past
"""

_base_ = './free.py'

model = dict(
    backbone=dict(mole=dict(num_experts=8)),
    router=dict(grouping=dict(type='tas_lora.ParamCountGroups', num_groups=8)),
)
