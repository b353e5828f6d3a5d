"""Supernet and experts trained together from the start, as long as both stages.

python run.py --parts past
"""

_base_ = './joint.py'

optim_wrapper = dict(supernet=dict(optimizer=dict(lr=4e-3)), experts=dict(optimizer=dict(lr=4e-3)))
schedule = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=58, begin=2, end=60, convert_to_iter_based=True),
]
param_scheduler = dict(_delete_=True, supernet=schedule, experts=schedule, router=schedule)
train_cfg = dict(max_epochs=60)
