"""Stage 1: DYNAS's supernet, a subnet-aware rate and momentum by width (all depths are equal).

python run.py --parts supernet
"""

_base_ = './supernet.py'

param_scheduler = dict(
    _delete_=True, type='LinearLR', start_factor=0.01, begin=0, end=2, convert_to_iter_based=True
)
custom_hooks = [
    dict(type='tas_lora.ComplexityAwareLRHook', gamma_max=4.0, begin=2),
    dict(type='tas_lora.MomentumSeparationHook', group_by='embed_dim'),
]
