"""Evolutionary search in AutoFormer-B with experts, stage 3.

python tools/search.py configs/autoformer_b_search.py work_dirs/autoformer_b_moLE/epoch_50.pth

GPUs: 1. Best subnet up to 54.0M parameters: top-1 82.6 +-0.0 (published); not run here.
"""

_base_ = './autoformer_b_moLE.py'

val_cfg = dict(
    _delete_=True,
    type='tas_lora.EvolutionarySearchLoop',
    space={{_base_.space}},
    constraints=dict(params=(None, 54.0e6)),
    evolution=dict(
        population=50,
        generations=20,
        parents=10,
        mutations=25,
        crossovers=25,
        gene_prob=0.2,
        shape_prob=0.4,
        seed=0,
    ),
)
val_dataloader = dict(_delete_=True, **_base_.heldout_dataloader)
val_evaluator = [dict(type='tas_lora.CrossEntropy'), dict(type='Accuracy')]
train_dataloader = None
train_cfg = None
optim_wrapper = None
param_scheduler = None
