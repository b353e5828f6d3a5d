"""The supernet without experts for as long as joint_start.py: what of its gain needs them?

python run.py --parts past
"""

_base_ = '../supernet.py'

param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=58, begin=2, end=60, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=60)
