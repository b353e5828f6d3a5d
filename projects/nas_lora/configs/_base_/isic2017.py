"""ISIC 2017, part 1 (skin lesions): data/isic2017/ with the six folders of the challenge.

2,000 training, 150 validation and 600 test images. The image folders also hold superpixels, which
end in .png and are ignored.
"""

_base_ = ['images_1024.py']

names = dict(data_root='data/isic2017', image_endings=('.jpg',), mask_ending='_segmentation.png')
train_folders = dict(
    img_path='ISIC-2017_Training_Data', seg_map_path='ISIC-2017_Training_Part1_GroundTruth'
)
val_folders = dict(
    img_path='ISIC-2017_Validation_Data', seg_map_path='ISIC-2017_Validation_Part1_GroundTruth'
)
test_folders = dict(
    img_path='ISIC-2017_Test_v2_Data', seg_map_path='ISIC-2017_Test_v2_Part1_GroundTruth'
)
train_dataloader = dict(dataset=dict(**names, data_prefix=train_folders))
val_dataloader = dict(dataset=dict(**names, data_prefix=val_folders))
test_dataloader = dict(dataset=dict(**names, data_prefix=test_folders))
val_evaluator = dict(metrics=('iou', 'dice'))
test_evaluator = val_evaluator
