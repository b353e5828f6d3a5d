"""An MLP as router; experts trained as in past/plus.py.

python run.py --parts plus --stretch 6
"""

_base_ = '../past/plus.py'

model = dict(router=dict(type='tas_lora.MLPRouterHead'))
