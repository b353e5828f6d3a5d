"""DYNAS in stage 1, AutoFormer-T: subnet-aware learning rate, and momentum by depth.

tools/dist_train.sh configs/baselines/t_dynas.py 8

GPUs: 8, batch 8 x 128. Searched subnet, 5.9M parameters: top-1 74.8 (published); not run here.
After AutoFormer's warm-up, the rate falls faster for smaller subnets. DYNAS was published for
another space, and its authors' settings on AutoFormer are not published: this is our reading.
"""

_base_ = '../autoformer_t_supernet.py'

param_scheduler = dict(
    _delete_=True, type='LinearLR', start_factor=1e-3, begin=0, end=20, convert_to_iter_based=True
)
custom_hooks = [
    dict(type='tas_lora.ComplexityAwareLRHook', gamma_max=4.0, begin=20),
    dict(type='tas_lora.MomentumSeparationHook', group_by='depth'),
]
