"""SBU (shadows): data/sbu/ with SBUTrain4KRecoveredSmall/ and SBU-Test/, as published.

Scored by the balanced error rate. No validation set is published: the test set is used for both.
"""

_base_ = ['images_1024.py']

folders = dict(img_path='ShadowImages', seg_map_path='ShadowMasks')
train_dataloader = dict(
    dataset=dict(data_root='data/sbu/SBUTrain4KRecoveredSmall', data_prefix=folders)
)
val_dataloader = dict(dataset=dict(data_root='data/sbu/SBU-Test', data_prefix=folders))
test_dataloader = val_dataloader
val_evaluator = dict(metrics=('ber', 'iou'))
test_evaluator = val_evaluator
