"""Tiles of stained nuclei: tools/prepare_nuclei.py writes data/nuclei.

Tiles without a nucleus, or with little of one, make the ratio over all pixels the steadier score.
"""

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='nas_lora.LoadMask'),
    dict(type='RandomFlip', prob=[0.25, 0.25], direction=['horizontal', 'vertical']),
    dict(type='nas_lora.PackMask'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='nas_lora.LoadMask'),
    dict(type='nas_lora.PackMask'),
]
loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    **loader,
    batch_size=8,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='nas_lora.MaskFolder', data_root='data/nuclei/train', pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    **loader,
    batch_size=50,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='nas_lora.MaskFolder', data_root='data/nuclei/val', pipeline=test_pipeline),
)
test_dataloader = dict(
    **loader,
    batch_size=50,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='nas_lora.MaskFolder', data_root='data/nuclei/test', pipeline=test_pipeline),
)
val_evaluator = dict(type='nas_lora.MaskMetrics', average='dataset')
test_evaluator = val_evaluator
