"""The experts of `make demo`: TAS-LoRA on 8x8 digits, stage 2.

python tools/train.py configs/digits_moLE.py

GPUs: 0, about 40 s on two CPU cores. Measured top-1: README.md.
"""

_base_ = './digits_supernet.py'

model = dict(
    backbone=dict(mole=dict(num_experts=12, rank=4)),
    router=dict(type='tas_lora.LSTMRouterHead', space={{_base_.space}}, beta=3.0),
)
load_from = 'work_dirs/digits_supernet/epoch_30.pth'

# Higher rates than the paper's, as there are a thousandth of its iterations.
optim_wrapper = dict(
    _delete_=True,
    constructor='tas_lora.MoLEOptimWrapperConstructor',
    experts=dict(optimizer=dict(type='AdamW', lr=4e-3, weight_decay=0.05)),
    router=dict(optimizer=dict(type='SGD', lr=1e-1)),
)
param_scheduler = dict(
    _delete_=True,
    experts=[
        dict(type='LinearLR', start_factor=0.02, begin=0, end=2, convert_to_iter_based=True),
        dict(type='CosineAnnealingLR', T_max=10, begin=2, end=12, convert_to_iter_based=True),
    ],
    router=[dict(type='CosineAnnealingLR', T_max=10, begin=2, end=12, convert_to_iter_based=True)],
)
custom_hooks = [
    dict(type='tas_lora.MoLEHook', router_warmup_epochs=2),
    dict(type='tas_lora.MoLEStatsHook'),
]
train_cfg = dict(max_epochs=12, val_interval=6)
