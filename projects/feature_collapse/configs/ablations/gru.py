"""Router: a GRU.

python run.py --parts ablations
"""

_base_ = '../mole.py'

model = dict(router=dict(type='tas_lora.GRURouterHead'))
