"""SBU (shadows): data/sbu/ with SBUTrain4KRecoveredSmall/ and SBU-Test/, as published.

Scored by the balanced error rate. No validation set is published, so it is the test set here.
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
dataset = dict(type='nas_lora.MaskFolder', data_root='data/sbu', image_endings=('.jpg',))
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        **dataset,
        data_prefix=dict(
            img_path='SBUTrain4KRecoveredSmall/ShadowImages',
            seg_map_path='SBUTrain4KRecoveredSmall/ShadowMasks',
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
            img_path='SBU-Test/ShadowImages',
            seg_map_path='SBU-Test/ShadowMasks',
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
            img_path='SBU-Test/ShadowImages',
            seg_map_path='SBU-Test/ShadowMasks',
        ),
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(type='nas_lora.MaskMetrics', metrics=('ber', 'iou'))
test_evaluator = val_evaluator
