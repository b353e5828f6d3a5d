"""CAMO (camouflaged objects): data/camo/ with Images/Train, Images/Test and GT.

1,000 training and 250 test images. No validation set is published: the test set is used for both.
"""

_base_ = ['images_1024.py']

train = dict(data_root='data/camo', data_prefix=dict(img_path='Images/Train', seg_map_path='GT'))
test = dict(data_root='data/camo', data_prefix=dict(img_path='Images/Test', seg_map_path='GT'))
train_dataloader = dict(dataset=train)
val_dataloader = dict(dataset=test)
test_dataloader = val_dataloader
