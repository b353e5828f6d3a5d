"""COD10K (camouflaged objects): data/cod10k/ with Train/ and Test/, in each Image and GT_Object.

No validation set is published, so it is the test set here.
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
dataset = dict(type='nas_lora.MaskFolder', data_root='data/cod10k', image_endings=('.jpg',))
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        **dataset,
        data_prefix=dict(
            img_path='Train/Image',
            seg_map_path='Train/GT_Object',
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
            img_path='Test/Image',
            seg_map_path='Test/GT_Object',
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
            img_path='Test/Image',
            seg_map_path='Test/GT_Object',
        ),
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(type='nas_lora.MaskMetrics')
test_evaluator = val_evaluator
