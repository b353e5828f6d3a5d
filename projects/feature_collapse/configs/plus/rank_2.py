"""Rank 2; experts trained as in past/plus.py.

python run.py --parts plus --stretch 6
"""

_base_ = '../past/plus.py'

model = dict(backbone=dict(mole=dict(rank=2)))
