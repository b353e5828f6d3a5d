"""Stage 2: TAS-LoRA with random router initialisation, one head for all groups.

python run.py --parts stage2
"""

_base_ = './mole.py'

model = dict(router=dict(init='random'))
