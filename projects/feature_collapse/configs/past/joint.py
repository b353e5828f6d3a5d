"""Stage 2 with the supernet trained beside its experts.

python run.py --parts past
"""

_base_ = './free.py'

model = dict(freeze_supernet=False)
optim_wrapper = dict(
    supernet=dict(optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05, fused=True))
)
param_scheduler = dict(
    supernet=[
        dict(type='LinearLR', start_factor=0.02, begin=0, end=2, convert_to_iter_based=True),
        dict(type='CosineAnnealingLR', T_max=18, begin=2, end=20, convert_to_iter_based=True),
    ]
)
