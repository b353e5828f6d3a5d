"""Upper bound: one subnet alone, all its weights trained on from those it has in the supernet.

python run.py --parts alone
"""

_base_ = './full_finetune.py'

optim_wrapper = dict(optimizer=dict(lr=5e-3))  # results/tuning
