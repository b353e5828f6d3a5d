"""Upper bound: one subnet alone, with a LoRA of its own of the experts' rank.

python run.py --parts alone
"""

_base_ = './single_lora.py'

optim_wrapper = dict(optimizer=dict(lr=1e-2))  # results/tuning
