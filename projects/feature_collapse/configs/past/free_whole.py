"""As free.py, at the rank of the widest matrices: experts that can become anything.

python run.py --parts past
"""

_base_ = './free.py'

model = dict(backbone=dict(mole=dict(rank=32)))
