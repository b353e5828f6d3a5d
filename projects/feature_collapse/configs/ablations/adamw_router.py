"""The router moved by AdamW.

python run.py --parts ablations
"""

_base_ = '../mole.py'

optim_wrapper = dict(
    router=dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=0.0))
)
