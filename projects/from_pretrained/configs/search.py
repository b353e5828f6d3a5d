"""Search for the best subnet with half of the original's multiply-adds.

python tools/search.py projects/from_pretrained/configs/search.py \
    work_dirs/experts/epoch_30.pth --test

GPUs: 0. Not run at this length.
"""

_base_ = './experts.py'

val_cfg = dict(
    _delete_=True,
    type='tas_lora.EvolutionarySearchLoop',
    space={{_base_.space}},
    constraints=dict(flops=(None, 547.9e6)),  # the original has 1,095.8e6 at 98 pixels
    evolution=dict(population=20, generations=10, parents=5, mutations=10, crossovers=10, seed=0),
)
val_evaluator = [dict(type='tas_lora.CrossEntropy'), dict(type='Accuracy')]
train_dataloader = None
train_cfg = None
optim_wrapper = None
param_scheduler = None
