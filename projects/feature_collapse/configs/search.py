"""A search in a space of 504 subnets, on experts that run.py --space search has trained.

P=projects/feature_collapse
PYTHONPATH=$P python tools/search.py $P/configs/search.py $P/weights/mole.safetensors

GPUs: 0; 1.5 minutes on one core. Finds heads 2-2, MLP 4-2, width 32: of all within 25,000
parameters the least held-out loss, 0.3727 (results/search/); top-1 86.02.
"""

_base_ = './mole.py'

space = dict(embed_dim=[16, 32], depth=[2, 3], num_heads=[1, 2], mlp_ratio=[1.0, 2.0, 4.0])
model = dict(
    backbone=dict(
        arch=dict(embed_dim=32, num_heads=[2] * 3, mlp_ratio=[4.0] * 3),
        mole=dict(num_experts=12),
    ),
    router=dict(space=space),
)
val_cfg = dict(
    _delete_=True,
    type='tas_lora.EvolutionarySearchLoop',
    space=space,
    constraints=dict(params=(None, 25e3)),
    log_interval=20,
    evolution=dict(population=20, generations=3, parents=5, mutations=10, crossovers=10, seed=0),
)
val_evaluator = [dict(type='tas_lora.CrossEntropy'), dict(type='Accuracy')]
test_cfg = dict(space=space)
train_cfg = None
train_dataloader = None
optim_wrapper = None
param_scheduler = None
custom_hooks = [dict(type='tas_lora.MoLEHook')]
log_level = 'INFO'
