"""The router never trained; experts trained as in past/plus.py.

python run.py --parts plus --stretch 6
"""

_base_ = '../past/plus.py'

custom_hooks = [
    dict(type='tas_lora.MoLEHook', router_warmup_epochs=20),
    dict(type='tas_lora.MoLEStatsHook'),
]
