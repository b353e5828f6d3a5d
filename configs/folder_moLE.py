"""Experts and router on the frozen supernet of a folder of images, stage 2.

python tools/train.py configs/folder_moLE.py

GPUs: 0, minutes on two CPU cores. Measured top-1 on letters: docs/own_data.md.
"""

_base_ = './folder_supernet.py'

space = _base_.space
model = dict(
    backbone=dict(
        mole=dict(
            # K: one expert per combination of heads, MLP ratio and width.
            num_experts=len(space.num_heads) * len(space.mlp_ratio) * len(space.embed_dim),
            rank=4,
        )
    ),
    router=dict(type='tas_lora.LSTMRouterHead', space=space, beta=3.0),
)
load_from = 'work_dirs/folder_supernet/epoch_30.pth'

optim_wrapper = dict(
    _delete_=True,
    constructor='tas_lora.MoLEOptimWrapperConstructor',
    experts=dict(optimizer=dict(type='AdamW', lr=4e-3, weight_decay=0.05)),
    router=dict(optimizer=dict(type='SGD', lr=1e-1)),
)
param_scheduler = dict(
    _delete_=True,
    experts=[
        dict(type='LinearLR', start_factor=0.02, begin=0, end=1, convert_to_iter_based=True),
        dict(type='CosineAnnealingLR', T_max=7, begin=1, end=8, convert_to_iter_based=True),
    ],
    router=[dict(type='CosineAnnealingLR', T_max=7, begin=1, end=8, convert_to_iter_based=True)],
)
custom_hooks = [
    dict(type='tas_lora.MoLEHook', router_warmup_epochs=1),
    dict(type='tas_lora.MoLEStatsHook'),
]
train_cfg = dict(max_epochs=8, val_interval=4)
