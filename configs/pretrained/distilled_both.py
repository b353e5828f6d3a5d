"""DeiT-S on your own images: experts for its slices, and all weights along with them.

python tools/train.py configs/pretrained/distilled_both.py

GPUs: 1. Top-1 not run. The teacher is a frozen copy of the network as it was.
"""

_base_ = [
    '../_base_/models/deit_s.py',
    '../_base_/datasets/image_folder_224.py',
    '../_base_/schedules/distill_both.py',
    '../_base_/default_runtime.py',
]

load_from = 'ordered/ordered.pth'  # of tools/order.py; the teacher is a copy of this file
space = _base_.space
model = dict(
    backbone=dict(
        mole=dict(
            # One expert per combination of heads, MLP ratio and width, and those that are shared.
            num_experts=1 + len(space.num_heads) * len(space.mlp_ratio) * len(space.embed_dim),
            rank=8,
        )
    ),
    router=dict(type='tas_lora.LSTMRouterHead', space=space, shared=1),
    freeze_supernet=False,
    head=dict(num_classes={{_base_.data_preprocessor.num_classes}}),
)
train_cfg = dict(space={{_base_.space}})
val_cfg = dict(space={{_base_.space}})
test_cfg = dict(space={{_base_.space}})
