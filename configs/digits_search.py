"""The search of `make demo`: evolution on 8x8 digits under a parameter limit, stage 3.

python tools/search.py configs/digits_search.py work_dirs/digits_moLE/epoch_12.pth

GPUs: 0, seconds on two CPU cores. Measured top-1: README.md.
"""

_base_ = './digits_moLE.py'

val_cfg = dict(
    _delete_=True,
    type='tas_lora.EvolutionarySearchLoop',
    space={{_base_.space}},
    constraints=dict(params=(None, 40e3)),
    log_interval=50,
    evolution=dict(population=20, generations=10, parents=5, mutations=10, crossovers=10, seed=0),
)
val_dataloader = dict(_delete_=True, **_base_.heldout_dataloader)
val_evaluator = [dict(type='tas_lora.CrossEntropy'), dict(type='Accuracy')]
train_dataloader = None
train_cfg = None
optim_wrapper = None
param_scheduler = None
