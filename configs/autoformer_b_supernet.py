"""AutoFormer-B supernet, stage 1.

tools/dist_train.sh configs/autoformer_b_supernet.py 8

GPUs: 8, batch 8 x 128. Searched subnet, 54.0M parameters: top-1 82.4 (published);
not run here.
"""

_base_ = [
    '_base_/models/autoformer_b.py',
    '_base_/datasets/imagenet_autoformer.py',
    '_base_/schedules/supernet_500e.py',
    '_base_/default_runtime.py',
]
train_cfg = dict(space={{_base_.space}})
val_cfg = dict(space={{_base_.space}})
test_cfg = dict(space={{_base_.space}})
