"""COD10K (camouflaged objects): data/cod10k/ with {Train,Test}/{Image,GT_Object}/.

No validation set is published: the test set is used for both.
"""

_base_ = ['images_1024.py']

folders = dict(img_path='Image', seg_map_path='GT_Object')
train_dataloader = dict(dataset=dict(data_root='data/cod10k/Train', data_prefix=folders))
val_dataloader = dict(dataset=dict(data_root='data/cod10k/Test', data_prefix=folders))
test_dataloader = val_dataloader
