"""Groups at random.

python run.py --parts ablations
"""

_base_ = '../mole.py'

model = dict(router=dict(grouping=dict(type='tas_lora.RandomGroups', seed=0)))
