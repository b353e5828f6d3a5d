"""Whether the supernet is trained to its end: 10 % more epochs of all its weights.

python run.py --parts supernet
"""

_base_ = './full_finetune.py'

param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=3, begin=1, end=4, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=4)
