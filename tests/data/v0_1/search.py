"""Evolution under a limit of parameters, with a race and a random search beside: stage 3."""

_base_ = './moLE.py'

val_cfg = dict(
    _delete_=True,
    type='tas_lora.EvolutionarySearchLoop',
    space={{_base_.space}},
    constraints=dict(params=(None, 4000)),
    race=dict(first=40, strata=2, controls=4),
    baseline=True,
    evolution=dict(population=6, generations=3, parents=3, mutations=2, crossovers=2, seed=0),
)
val_evaluator = [dict(type='tas_lora.CrossEntropy'), dict(type='Accuracy')]
train_dataloader = None
train_cfg = None
optim_wrapper = None
param_scheduler = None
