"""Experts scaled by 80: for AdamW, up projections at 80 times the rate; plus.py has 20.

python run.py --parts ablations
"""

_base_ = '../past/plus.py'

optim_wrapper = dict(experts=dict(paramwise_cfg=dict(custom_keys=dict(lora_b=dict(lr_mult=80)))))
