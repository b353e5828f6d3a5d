"""No warm-up of the router; experts trained as in past/plus.py.

python run.py --parts plus --stretch 6
"""

_base_ = '../past/plus.py'

custom_hooks = [dict(type='tas_lora.MoLEHook'), dict(type='tas_lora.MoLEStatsHook')]
