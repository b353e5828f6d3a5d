"""Kvasir-SEG (polyps): data/kvasir/{train,val,test}/ with images/ and masks/, both .jpg.

The published set (1,000 images) has no split of its own, and which one NAS-LoRA used is not
published: make one.
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
dataset = dict(type='nas_lora.MaskFolder', data_root='data/kvasir', mask_ending='.jpg')
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        **dataset,
        data_prefix=dict(
            img_path='train/images',
            seg_map_path='train/masks',
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
            img_path='val/images',
            seg_map_path='val/masks',
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
            img_path='test/images',
            seg_map_path='test/masks',
        ),
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(type='nas_lora.MaskMetrics', metrics=('iou', 'dice'))
test_evaluator = val_evaluator
