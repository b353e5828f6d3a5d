"""Images and masks of a published set, resized to squares of 1024 pixels, the size of scoring.

Each set overrides the paths of its files and its metrics.
"""

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
loader = dict(batch_size=4, num_workers=4, persistent_workers=True)
train_dataloader = dict(
    **loader,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='nas_lora.MaskFolder', pipeline=train_pipeline),
)
val_dataloader = dict(
    **loader,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='nas_lora.MaskFolder', pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='nas_lora.MaskMetrics')
test_evaluator = val_evaluator
