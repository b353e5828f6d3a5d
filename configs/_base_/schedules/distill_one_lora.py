# One LoRA for all subnets of a frozen pretrained network, which is the teacher. Chosen here.
_base_ = './distill_all.py'

optim_wrapper = dict(
    _delete_=True,
    type='tas_lora.SupernetOptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
)
custom_hooks = [dict(type='tas_lora.MoLEHook'), dict(type='tas_lora.MoLEStatsHook')]
