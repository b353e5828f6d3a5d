"""As free_single.py, up projections at twenty times the rate of down projections (LoRA+).

python run.py --parts past
"""

_base_ = './free_single.py'

optim_wrapper = dict(
    optimizer=dict(lr=2e-3), paramwise_cfg=dict(custom_keys=dict(lora_b=dict(lr_mult=20)))
)
