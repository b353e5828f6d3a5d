"""Evolutionary search for the best subnet up to 60,000 parameters.

python $TOOLS/test.py configs/search.py work_dirs/experts/epoch_10.pth

MMPretrain has no tool that only validates, so the search, a validation loop, runs as a test. It
writes work_dirs/search/best_subnet.json.
"""

_base_ = './experts.py'

val_dataloader = dict(_delete_=True, **_base_.heldout_dataloader)
val_evaluator = [dict(type='tas_lora.CrossEntropy'), dict(type='Accuracy')]
val_cfg = dict(
    _delete_=True,
    type='tas_lora.EvolutionarySearchLoop',
    space={{_base_.space}},
    constraints=dict(params=(None, 60e3)),
    evolution=dict(population=10, generations=5, parents=4, mutations=5, crossovers=5, seed=0),
)
test_dataloader = dict(_delete_=True, **_base_.heldout_dataloader)
test_evaluator = val_evaluator
test_cfg = val_cfg
train_dataloader = None
train_cfg = None
optim_wrapper = None
