"""The router stays as it is initialised.

python run.py --parts ablations
"""

_base_ = '../mole.py'

custom_hooks = [
    dict(type='tas_lora.MoLEHook', router_warmup_epochs=20),
    dict(type='tas_lora.MoLEStatsHook'),
]
