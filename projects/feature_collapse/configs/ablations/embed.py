"""Attributes: the width alone, two groups.

python run.py --parts ablations
"""

_base_ = '../mole.py'

model = dict(backbone=dict(mole=dict(num_experts=2)), router=dict(attributes=['embed_dim']))
