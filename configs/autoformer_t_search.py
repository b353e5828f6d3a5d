"""Evolutionary search in AutoFormer-T with experts, stage 3.

python tools/search.py configs/autoformer_t_search.py work_dirs/autoformer_t_moLE/epoch_50.pth

GPUs: 1. Best subnet up to 5.9M parameters: top-1 75.7 +-0.1 (published); not run here.
"""

_base_ = [
    '_base_/models/mole_t.py',
    '_base_/datasets/imagenet_autoformer.py',
    '_base_/schedules/search_evolution.py',
    '_base_/default_runtime.py',
]
val_cfg = dict(space={{_base_.space}}, constraints=dict(params=(None, 5.9e6)))
val_dataloader = dict(_delete_=True, **_base_.heldout_dataloader)
val_evaluator = [dict(type='tas_lora.CrossEntropy'), dict(type='Accuracy')]
test_cfg = dict(space={{_base_.space}})
train_dataloader = None
