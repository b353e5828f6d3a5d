"""Kvasir-SEG (polyps): data/kvasir/{train,val,test}/ with images/ and masks/, both .jpg.

The published set (1,000 images) has no official split, and NAS-LoRA's is not published:
make your own.
"""

_base_ = ['images_1024.py']

train_dataloader = dict(dataset=dict(data_root='data/kvasir/train', mask_ending='.jpg'))
val_dataloader = dict(dataset=dict(data_root='data/kvasir/val', mask_ending='.jpg'))
test_dataloader = dict(dataset=dict(data_root='data/kvasir/test', mask_ending='.jpg'))
val_evaluator = dict(metrics=('iou', 'dice'))
test_evaluator = val_evaluator
