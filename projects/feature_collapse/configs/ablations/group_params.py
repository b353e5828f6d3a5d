"""Groups of subnets of similar size.

python run.py --parts ablations
"""

_base_ = '../mole.py'

model = dict(router=dict(grouping=dict(type='tas_lora.ParamCountGroups')))
