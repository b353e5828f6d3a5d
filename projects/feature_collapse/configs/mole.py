"""Stage 2: TAS-LoRA, group-wise initialisation.

python run.py --parts stage2
"""

_base_ = './supernet.py'

model = dict(
    backbone=dict(mole=dict(num_experts=4, rank=8)),
    router=dict(type='tas_lora.LSTMRouterHead', space={{_base_.space}}, beta=3.0),
)
# The router's rate is the paper's; the experts' 5e-4 moves nothing in so few iterations.
optim_wrapper = dict(
    _delete_=True,
    constructor='tas_lora.MoLEOptimWrapperConstructor',
    type='tas_lora.SupernetOptimWrapper',
    experts=dict(optimizer=dict(type='AdamW', lr=5e-3, weight_decay=0.05, fused=True)),
    router=dict(optimizer=dict(type='SGD', lr=1e-1)),
)
param_scheduler = dict(
    _delete_=True,
    experts=[
        dict(type='LinearLR', start_factor=0.02, begin=0, end=2, convert_to_iter_based=True),
        dict(type='CosineAnnealingLR', T_max=18, begin=2, end=20, convert_to_iter_based=True),
    ],
    router=[dict(type='CosineAnnealingLR', T_max=18, begin=2, end=20, convert_to_iter_based=True)],
)
custom_hooks = [
    dict(type='tas_lora.MoLEHook', router_warmup_epochs=2),
    dict(type='tas_lora.MoLEStatsHook'),
]
train_cfg = dict(max_epochs=20)
