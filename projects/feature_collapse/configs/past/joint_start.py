"""Supernet and experts trained together from the start, as long as both stages.

python run.py --parts past
"""

_base_ = '../supernet.py'

model = dict(
    freeze_supernet=False,
    backbone=dict(mole=dict(num_experts=4, rank=8)),
    router=dict(type='tas_lora.LSTMRouterHead', space={{_base_.space}}, beta=3.0),
)
optim_wrapper = dict(
    _delete_=True,
    constructor='tas_lora.MoLEOptimWrapperConstructor',
    type='tas_lora.SupernetOptimWrapper',
    supernet=dict(optimizer=dict(type='AdamW', lr=4e-3, weight_decay=0.05, fused=True)),
    experts=dict(optimizer=dict(type='AdamW', lr=4e-3, weight_decay=0.0, fused=True)),
    router=dict(optimizer=dict(type='SGD', lr=1e-1)),
)
schedule = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=58, begin=2, end=60, convert_to_iter_based=True),
]
param_scheduler = dict(_delete_=True, supernet=schedule, experts=schedule, router=schedule)
custom_hooks = [
    dict(type='tas_lora.MoLEHook', router_warmup_epochs=2),
    dict(type='tas_lora.MoLEStatsHook'),
]
train_cfg = dict(max_epochs=60)
