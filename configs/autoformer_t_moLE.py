"""TAS-LoRA on AutoFormer-T, stage 2: experts and router on the frozen supernet.

tools/dist_train.sh configs/autoformer_t_moLE.py 4

GPUs: 4, batch 4 x 256. Searched subnet, 5.9M parameters, 1.3G FLOPs: top-1 75.7 +-0.1
(published); not run here. load_from also accepts an official AutoFormer file.
"""

_base_ = [
    '_base_/models/mole_t.py',
    '_base_/datasets/imagenet_autoformer.py',
    '_base_/schedules/mole_50e.py',
    '_base_/default_runtime.py',
]
load_from = 'work_dirs/autoformer_t_supernet/epoch_500.pth'
train_dataloader = dict(batch_size=256)
train_cfg = dict(space={{_base_.space}})
val_cfg = dict(space={{_base_.space}})
test_cfg = dict(space={{_base_.space}})
