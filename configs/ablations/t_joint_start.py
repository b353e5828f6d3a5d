"""Supernet, experts and router of the T space trained together from the start, both stages in one.

tools/dist_train.sh configs/ablations/t_joint_start.py 4

GPUs: 4, batch 4 x 256. Searched subnet in the T space: top-1 not run; the experts' rates are not
tuned. A small version on Fashion-MNIST: projects/feature_collapse, method joint_start.
"""

_base_ = './t_joint.py'

load_from = None
optim_wrapper = dict(
    supernet=dict(optimizer=dict(lr=1e-3)),
    experts=dict(optimizer=dict(lr=1e-3, weight_decay=0.0)),
)
schedule = dict(type='tas_lora.AutoFormerLR', epochs=550, warmup_epochs=20)
param_scheduler = dict(
    _delete_=True,
    supernet=schedule,
    experts=schedule,
    router=dict(type='CosineAnnealingLR', T_max=545, eta_min=0.0, begin=5, end=550),
)
train_cfg = dict(max_epochs=550)
