"""Experts and their router on the frozen supernet.

python $TOOLS/train.py configs/experts.py
"""

_base_ = './supernet.py'

model = dict(
    # K: the number of combinations of width, heads and MLP ratio in the space.
    backbone=dict(mole=dict(num_experts=8, rank=4)),
    router=dict(type='tas_lora.LSTMRouterHead', space={{_base_.space}}),
)
load_from = 'work_dirs/supernet/epoch_20.pth'

optim_wrapper = dict(
    _delete_=True,
    constructor='tas_lora.MoLEOptimWrapperConstructor',
    experts=dict(optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05)),
    router=dict(optimizer=dict(type='SGD', lr=0.1)),
)
param_scheduler = None
custom_hooks = [
    dict(type='PlainCheckpoints'),
    dict(type='tas_lora.MoLEHook', router_warmup_epochs=1),
]
train_cfg = dict(max_epochs=10)
