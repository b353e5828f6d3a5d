"""DeiT-S on your own images: the original itself is fine-tuned, before it is ordered and sliced.

python tools/train.py configs/pretrained/original.py

GPUs: 1. Top-1 not run. The head for the classes of the images starts anew. Give the result to
tools/order.py; the other configs here start from what that writes.
"""

_base_ = [
    '../_base_/models/deit_s.py',
    '../_base_/datasets/image_folder_224.py',
    '../_base_/schedules/finetune_original.py',
    '../_base_/default_runtime.py',
]

load_from = 'original/supernet.pth'  # of tools/supernet_from.py
model = dict(head=dict(num_classes={{_base_.data_preprocessor.num_classes}}))
