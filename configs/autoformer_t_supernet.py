"""AutoFormer-T supernet, stage 1.

tools/dist_train.sh configs/autoformer_t_supernet.py 8

GPUs: 8, batch 8 x 128. Searched subnet, 5.9M parameters: top-1 74.7 (published);
not run here.
"""

_base_ = [
    '_base_/models/autoformer_t.py',
    '_base_/datasets/imagenet_autoformer.py',
    '_base_/schedules/supernet_500e.py',
    '_base_/default_runtime.py',
]
train_cfg = dict(space={{_base_.space}})
val_cfg = dict(space={{_base_.space}})
test_cfg = dict(space={{_base_.space}})
