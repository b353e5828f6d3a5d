"""COD10K (camouflaged objects): data/cod10k/ with Train/ and Test/, in each Image and GT_Object.

No validation set is published, so it is the test set here.
"""

_base_ = ['images_1024.py']

folders = dict(img_path='Image', seg_map_path='GT_Object')
train_dataloader = dict(dataset=dict(data_root='data/cod10k/Train', data_prefix=folders))
val_dataloader = dict(dataset=dict(data_root='data/cod10k/Test', data_prefix=folders))
test_dataloader = val_dataloader
