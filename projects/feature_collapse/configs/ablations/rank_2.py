"""Rank 2.

python run.py --parts ablations
"""

_base_ = '../mole.py'

model = dict(backbone=dict(mole=dict(rank=2)))
