"""Small images and masks in data/SET/{train,val,test}/, at their own size."""

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='nas_lora.LoadMask'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='nas_lora.PackMask'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='nas_lora.LoadMask'),
    dict(type='nas_lora.PackMask'),
]
loader = dict(num_workers=0, persistent_workers=False)  # otherwise MMPretrain's tools set them
train_dataloader = dict(
    **loader,
    batch_size=16,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='nas_lora.MaskFolder', pipeline=train_pipeline),
)
val_dataloader = dict(
    **loader,
    batch_size=50,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='nas_lora.MaskFolder', pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='nas_lora.MaskMetrics')
test_evaluator = val_evaluator
