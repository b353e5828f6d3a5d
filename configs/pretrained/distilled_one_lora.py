"""DeiT-S on your own images: one LoRA for all its slices, on frozen weights.

python tools/train.py configs/pretrained/distilled_one_lora.py

GPUs: 1. Top-1 not run. The full size has the LoRA, too, unless model.keep_parent=True.
distilled_experts.py may start from the result: each of its experts is then a copy of this one.
"""

_base_ = [
    '../_base_/models/deit_s.py',
    '../_base_/datasets/image_folder_224.py',
    '../_base_/schedules/distill_one_lora.py',
    '../_base_/default_runtime.py',
]

load_from = 'ordered/ordered.pth'  # of tools/order.py
model = dict(
    backbone=dict(mole=dict(num_experts=1, rank=8)),
    router=dict(type='tas_lora.SingleExpertHead', space={{_base_.space}}),
    head=dict(num_classes={{_base_.data_preprocessor.num_classes}}),
)
train_cfg = dict(space={{_base_.space}})
val_cfg = dict(space={{_base_.space}})
test_cfg = dict(space={{_base_.space}})
