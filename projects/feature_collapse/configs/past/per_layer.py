"""As free.py, rank and experts by layer: the second block has more of both.

python run.py --parts past
"""

_base_ = './free.py'

model = dict(backbone=dict(mole=dict(layer_experts=3, importance=[[1] * 4, [2] * 4])))
