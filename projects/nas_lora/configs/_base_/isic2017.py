"""ISIC 2017, part 1 (skin lesions): data/isic2017/ with the six folders of the challenge.

2,000 images to train on, 150 to validate, 600 to test. The images' folders hold superpixels, too,
which end in .png and are left out.
"""

# Every image becomes a square of 1024 pixels, and so does its mask: scores are those at that size.
resize = dict(type='Resize', scale=(1024, 1024), keep_ratio=False)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='nas_lora.LoadMask'),
    resize,
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='nas_lora.PackMask'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='nas_lora.LoadMask'),
    resize,
    dict(type='nas_lora.PackMask'),
]
dataset = dict(
    type='nas_lora.MaskFolder',
    data_root='data/isic2017',
    image_endings=('.jpg',),
    mask_ending='_segmentation.png',
)
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        **dataset,
        data_prefix=dict(
            img_path='ISIC-2017_Training_Data',
            seg_map_path='ISIC-2017_Training_Part1_GroundTruth',
        ),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset,
        data_prefix=dict(
            img_path='ISIC-2017_Validation_Data',
            seg_map_path='ISIC-2017_Validation_Part1_GroundTruth',
        ),
        pipeline=test_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset,
        data_prefix=dict(
            img_path='ISIC-2017_Test_v2_Data',
            seg_map_path='ISIC-2017_Test_v2_Part1_GroundTruth',
        ),
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(type='nas_lora.MaskMetrics', metrics=('iou', 'dice'))
test_evaluator = val_evaluator
