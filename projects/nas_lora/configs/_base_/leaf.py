"""Leaf disease segmentation: data/leaf/{train,val,test}/ with images/ (.jpg) and masks/ (.png).

The published set (588 images) has no official split, and NAS-LoRA's is not published:
make your own.
"""

_base_ = ['images_1024.py']

train_dataloader = dict(dataset=dict(data_root='data/leaf/train'))
val_dataloader = dict(dataset=dict(data_root='data/leaf/val'))
test_dataloader = dict(dataset=dict(data_root='data/leaf/test'))
val_evaluator = dict(metrics=('iou', 'dice'))
test_evaluator = val_evaluator
