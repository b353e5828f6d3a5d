"""As longer.py with one LoRA beside the supernet: what of joint_start.py's gain needs experts?

python run.py --parts past
"""

_base_ = './longer.py'

model = dict(
    backbone=dict(mole=dict(num_experts=1, rank=8)),
    router=dict(type='tas_lora.SingleExpertHead', space={{_base_.space}}),
    freeze_supernet=False,
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(lora_=dict(decay_mult=0.0))))
custom_hooks = [dict(type='tas_lora.MoLEHook'), dict(type='tas_lora.MoLEStatsHook')]
