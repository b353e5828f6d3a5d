"""Stage 2: one LoRA shared by all subnets, no router.

python run.py --parts stage2
"""

_base_ = './full_finetune.py'

model = dict(
    backbone=dict(mole=dict(num_experts=1, rank=8)),
    router=dict(type='tas_lora.SingleExpertHead', space={{_base_.space}}),
)
optim_wrapper = dict(optimizer=dict(lr=5e-3))
custom_hooks = [dict(type='tas_lora.MoLEHook'), dict(type='tas_lora.MoLEStatsHook')]
