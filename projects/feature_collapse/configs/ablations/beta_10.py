"""Group-wise initialisation, hard: the group's own expert has all.

python run.py --parts ablations
"""

_base_ = '../mole.py'

model = dict(router=dict(beta=10.0))
