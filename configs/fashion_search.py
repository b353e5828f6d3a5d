"""A search of 400 subnets on Fashion-MNIST by racing; docs/search.md reports its measurements.

python tools/search.py configs/fashion_search.py work_dirs/fashion_supernet/epoch_12.pth --test

GPUs: 0, five minutes on one CPU core, fifteen with --exhaustive. Measured top-1: docs/search.md.
"""

_base_ = './fashion_supernet.py'

val_cfg = dict(
    _delete_=True,
    type='tas_lora.EvolutionarySearchLoop',
    space={{_base_.space}},
    race=dict(first=500, growth=1.5, z=3.0, controls=20, strata=20),
    log_interval=50,
    evolution=dict(population=50, generations=8, parents=10, mutations=20, crossovers=20, seed=0),
)
val_dataloader = dict(_delete_=True, **_base_.heldout_dataloader)
val_evaluator = [dict(type='tas_lora.CrossEntropy'), dict(type='Accuracy')]
train_dataloader = None
train_cfg = None
optim_wrapper = None
param_scheduler = None
