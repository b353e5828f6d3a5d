"""Group-wise initialisation, weak: the group's own expert has 48 % in place of 87.

python run.py --parts ablations
"""

_base_ = '../mole.py'

model = dict(router=dict(beta=1.0))
