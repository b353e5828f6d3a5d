"""Evolutionary search in AutoFormer-B with experts, stage 3.

python tools/search.py configs/autoformer_b_search.py work_dirs/autoformer_b_moLE/epoch_50.pth

GPUs: 1. Best subnet up to 54.0M parameters: top-1 82.6 +-0.0 (published); not run here.
"""

_base_ = [
    '_base_/models/mole_b.py',
    '_base_/datasets/imagenet_autoformer.py',
    '_base_/schedules/search_evolution.py',
    '_base_/default_runtime.py',
]
val_cfg = dict(space={{_base_.space}}, constraints=dict(params=(None, 54.0e6)))
val_dataloader = dict(_delete_=True, **_base_.heldout_dataloader)
val_evaluator = [dict(type='tas_lora.CrossEntropy'), dict(type='Accuracy')]
test_cfg = dict(space={{_base_.space}})
train_dataloader = None
