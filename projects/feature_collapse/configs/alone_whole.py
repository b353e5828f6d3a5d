"""Upper bound: one subnet alone, all its weights trained on from those it has in the supernet.

python run.py --parts alone
"""

_base_ = './full_finetune.py'
