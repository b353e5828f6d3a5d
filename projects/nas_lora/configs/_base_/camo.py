"""CAMO (camouflaged objects): data/camo/ with Images/Train, Images/Test and GT.

1,000 images to train on, 250 to test; no validation set is published, so it is the test set here.
"""

_base_ = ['images_1024.py']

train = dict(data_root='data/camo', data_prefix=dict(img_path='Images/Train', seg_map_path='GT'))
test = dict(data_root='data/camo', data_prefix=dict(img_path='Images/Test', seg_map_path='GT'))
train_dataloader = dict(dataset=train)
val_dataloader = dict(dataset=test)
test_dataloader = val_dataloader
