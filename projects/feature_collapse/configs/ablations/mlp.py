"""Router: an MLP, block by block.

python run.py --parts ablations
"""

_base_ = '../mole.py'

model = dict(router=dict(type='tas_lora.MLPRouterHead'))
