# Experts and router learn from the frozen pretrained network that they are on. Chosen here.
_base_ = './distill_all.py'

optim_wrapper = dict(
    _delete_=True,
    constructor='tas_lora.MoLEOptimWrapperConstructor',
    experts=dict(optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05)),
    router=dict(optimizer=dict(type='SGD', lr=1e-1)),
)
cosine = dict(type='CosineAnnealingLR', T_max=29, begin=1, end=30, convert_to_iter_based=True)
param_scheduler = dict(
    _delete_=True,
    experts=[
        dict(type='LinearLR', start_factor=0.02, begin=0, end=1, convert_to_iter_based=True),
        cosine,
    ],
    router=[cosine],
)
custom_hooks = [
    dict(type='tas_lora.MoLEHook', router_warmup_epochs=1),
    dict(type='tas_lora.MoLEStatsHook'),
]
