"""One LoRA without weight decay, at the rate of free.py: what of its gain needs experts?

python run.py --parts past
"""

_base_ = '../single_lora.py'

optim_wrapper = dict(optimizer=dict(lr=2e-2, weight_decay=0.0))
