"""As joint.py, subnets taught by the largest; three subnets an iteration, hence fewer epochs.

python run.py --parts past
"""

_base_ = './joint.py'

optim_wrapper = dict(supernet=dict(optimizer=dict(lr=1e-3)))
param_scheduler = dict(
    supernet=[
        dict(type='LinearLR', start_factor=0.02, begin=0, end=1, convert_to_iter_based=True),
        dict(type='CosineAnnealingLR', T_max=6, begin=1, end=7, convert_to_iter_based=True),
    ],
    experts=[
        dict(type='LinearLR', start_factor=0.02, begin=0, end=1, convert_to_iter_based=True),
        dict(type='CosineAnnealingLR', T_max=6, begin=1, end=7, convert_to_iter_based=True),
    ],
    router=[dict(type='CosineAnnealingLR', T_max=6, begin=1, end=7, convert_to_iter_based=True)],
)
train_cfg = dict(
    max_epochs=7, strategy=dict(type='tas_lora.SandwichRule', num_random=1, distill=True)
)
