# Experts, router and all weights of a pretrained network learn from a frozen copy of it. Chosen
# here: the rates of distill_experts.py and of distill_all.py.
_base_ = './distill_experts.py'

optim_wrapper = dict(
    supernet=dict(
        optimizer=dict(type='AdamW', lr=4e-5, weight_decay=0.05),
        paramwise_cfg=dict(norm_decay_mult=0.0, flat_decay_mult=0.0),
    )
)
param_scheduler = dict(
    supernet=[
        dict(type='LinearLR', start_factor=0.02, begin=0, end=1, convert_to_iter_based=True),
        dict(type='CosineAnnealingLR', T_max=29, begin=1, end=30, convert_to_iter_based=True),
    ]
)
