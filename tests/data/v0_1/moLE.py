"""Experts and router on that supernet: stage 2."""

_base_ = './supernet.py'

model = dict(
    backbone=dict(mole=dict(num_experts=8, rank=2)),
    router=dict(
        type='tas_lora.LSTMRouterHead', space={{_base_.space}}, beta=3.0, hidden_size=8
    ),
)
load_from = 'runs/supernet/epoch_59.pth'
optim_wrapper = dict(
    _delete_=True,
    constructor='tas_lora.MoLEOptimWrapperConstructor',
    experts=dict(optimizer=dict(type='AdamW', lr=3e-2, weight_decay=0.05)),
    router=dict(optimizer=dict(type='SGD', lr=1.0)),
)
param_scheduler = dict(
    _delete_=True,
    experts=[
        dict(type='LinearLR', start_factor=0.1, begin=0, end=1, convert_to_iter_based=True),
        dict(type='CosineAnnealingLR', T_max=19, begin=1, end=20, convert_to_iter_based=True),
    ],
    router=[dict(type='CosineAnnealingLR', T_max=19, begin=1, end=20, convert_to_iter_based=True)],
)
custom_hooks = [
    dict(type='tas_lora.MoLEHook', router_warmup_epochs=1),
    dict(type='tas_lora.MoLEStatsHook'),
]
train_cfg = dict(max_epochs=10, val_interval=10)
