"""Search for the best subnet up to 150,000 parameters on a folder of images, stage 3.

python tools/search.py configs/folder_search.py work_dirs/folder_moLE/epoch_8.pth --test

GPUs: 0, minutes on two CPU cores. Measured top-1 on letters: docs/own_data.md.
"""

_base_ = './folder_moLE.py'

val_cfg = dict(
    _delete_=True,
    type='tas_lora.EvolutionarySearchLoop',
    space={{_base_.space}},
    constraints=dict(params=(None, 150e3)),
    log_interval=50,
    evolution=dict(population=20, generations=10, parents=5, mutations=10, crossovers=10, seed=0),
)
val_dataloader = dict(_delete_=True, **_base_.heldout_dataloader)
val_evaluator = [dict(type='tas_lora.CrossEntropy'), dict(type='Accuracy')]
train_dataloader = None
train_cfg = None
optim_wrapper = None
param_scheduler = None
