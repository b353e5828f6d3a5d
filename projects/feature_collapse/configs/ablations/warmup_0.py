"""No warm-up of the router.

python run.py --parts ablations
"""

_base_ = '../mole.py'

custom_hooks = [dict(type='tas_lora.MoLEHook'), dict(type='tas_lora.MoLEStatsHook')]
