"""Stage 2: the whole supernet trained on for as many epochs as the experts, without any.

python run.py --parts stage2
"""

_base_ = './supernet.py'

optim_wrapper = dict(optimizer=dict(lr=2e-3))  # results/tuning
param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, begin=0, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=18, begin=2, end=20, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=20)
