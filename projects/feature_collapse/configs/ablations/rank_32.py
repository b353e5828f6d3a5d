"""Rank 32, that of the widest matrices.

python run.py --parts ablations
"""

_base_ = '../mole.py'

model = dict(backbone=dict(mole=dict(rank=32)))
