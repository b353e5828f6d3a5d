"""The front of score and latency, measured: stage 3."""

_base_ = './moLE.py'

val_cfg = dict(
    _delete_=True,
    type='tas_lora.EvolutionarySearchLoop',
    space={{_base_.space}},
    goals=['latency'],
    measure=dict(rounds=3, warmup=1),
    evolution=dict(population=6, generations=2, mutations=2, crossovers=2, seed=0),
)
val_evaluator = [dict(type='tas_lora.CrossEntropy'), dict(type='Accuracy')]
train_dataloader = None
train_cfg = None
optim_wrapper = None
param_scheduler = None
