"""Experts without weight decay, at a larger rate: decay takes them back to the supernet.

python run.py --parts past
"""

_base_ = '../mole.py'

optim_wrapper = dict(experts=dict(optimizer=dict(lr=2e-2, weight_decay=0.0)))
