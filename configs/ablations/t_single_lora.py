"""One LoRA of rank 8 shared by all subnets of the T space: no choice of experts, no router.

tools/dist_train.sh configs/ablations/t_single_lora.py 4

GPUs: 4, batch 4 x 256. Searched subnet in the T space: top-1 75.0 (published); not run here.
"""

_base_ = '../autoformer_t_moLE.py'

model = dict(
    backbone=dict(mole=dict(num_experts=1)),
    router=dict(_delete_=True, type='tas_lora.SingleExpertHead', space={{_base_.space}}),
)
optim_wrapper = dict(
    _delete_=True,
    type='tas_lora.SupernetOptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=45, eta_min=1e-5, begin=5, end=50),
]
custom_hooks = [dict(type='tas_lora.MoLEHook'), dict(type='tas_lora.MoLEStatsHook')]
