"""Upper bound: one subnet alone, with a LoRA of its own of the experts' rank.

python run.py --parts alone
"""

_base_ = './single_lora.py'
