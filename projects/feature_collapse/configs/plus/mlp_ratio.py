"""Groups by MLP ratio alone, two experts; experts trained as in past/plus.py.

python run.py --parts plus --stretch 6
"""

_base_ = '../past/plus.py'

model = dict(backbone=dict(mole=dict(num_experts=2)), router=dict(attributes=['mlp_ratio']))
