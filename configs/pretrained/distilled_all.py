"""DeiT-S on your own images: all weights of its slices learn from the network as it was.

python tools/train.py configs/pretrained/distilled_all.py

GPUs: 1. Top-1 not run. For another network, give its sizes and style in place of models/deit_s.py,
and the space that tools/order.py proposes. The original must know the classes of the images; if
it does not, fine-tune it by original.py first, or learn them here: logits=0.0, labels=1.0 in the
strategy.
"""

_base_ = [
    '../_base_/models/deit_s.py',
    '../_base_/datasets/image_folder_224.py',
    '../_base_/schedules/distill_all.py',
    '../_base_/default_runtime.py',
]

load_from = 'ordered/ordered.pth'  # of tools/order.py; the teacher is a copy of this file
model = dict(head=dict(num_classes={{_base_.data_preprocessor.num_classes}}))
train_cfg = dict(space={{_base_.space}})
val_cfg = dict(space={{_base_.space}})
test_cfg = dict(space={{_base_.space}})
