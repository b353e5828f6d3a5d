"""TAS-LoRA on AutoFormer-B, stage 2: experts and router on the frozen supernet.

tools/dist_train.sh configs/autoformer_b_moLE.py 8

GPUs: 8, batch 8 x 128. Searched subnet, 54.0M parameters, 11.0G FLOPs: top-1 82.6 +-0.0
(published); not run here. load_from also accepts an official AutoFormer file.
"""

_base_ = [
    '_base_/models/mole_b.py',
    '_base_/datasets/imagenet_autoformer.py',
    '_base_/schedules/mole_50e.py',
    '_base_/default_runtime.py',
]
load_from = 'work_dirs/autoformer_b_supernet/epoch_500.pth'
train_cfg = dict(space={{_base_.space}})
val_cfg = dict(space={{_base_.space}})
test_cfg = dict(space={{_base_.space}})
