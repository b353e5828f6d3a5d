"""DeiT-S on your own images: experts for its slices; the network itself stays as it is.

python tools/train.py configs/pretrained/distilled_experts.py

GPUs: 1. Top-1 not run. The full size runs without experts, and is the teacher of all others. A LoRA
that all subnets share learns next to the experts of each group (shared=1).
"""

_base_ = [
    '../_base_/models/deit_s.py',
    '../_base_/datasets/image_folder_224.py',
    '../_base_/schedules/distill_experts.py',
    '../_base_/default_runtime.py',
]

load_from = 'ordered/ordered.pth'  # of tools/order.py
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
    keep_parent=True,
    head=dict(num_classes={{_base_.data_preprocessor.num_classes}}),
)
train_cfg = dict(space={{_base_.space}})
val_cfg = dict(space={{_base_.space}})
test_cfg = dict(space={{_base_.space}})
