"""A folder of images: data/train/<class>/ and data/val/<class>/, of any size that OpenCV reads."""

num_classes = 3  # folders in data/train; change it to yours
img_size = 32
held_out = 12  # images of data/train that are never trained on; they score the search

data_preprocessor = dict(
    num_classes=num_classes,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)
resize = [
    dict(type='ResizeEdge', scale=img_size, edge='short', backend='pillow'),
    dict(type='CenterCrop', crop_size=img_size),
]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    *resize,
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), *resize, dict(type='PackInputs')]

folder = dict(type='CustomDataset', data_root='data', with_label=True)
train_set = dict(**folder, data_prefix='train', pipeline=train_pipeline)
heldout_set = dict(**folder, data_prefix='train', pipeline=test_pipeline)
val_set = dict(**folder, data_prefix='val', pipeline=test_pipeline)
split = dict(type='tas_lora.HeldOutSplit', size=held_out, seed=0)

loader = dict(batch_size=16, num_workers=0, persistent_workers=False)
train_dataloader = dict(
    **loader,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**split, part='train', dataset=train_set),
)
heldout_dataloader = dict(
    **loader,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**split, part='heldout', dataset=heldout_set),
)
val_dataloader = dict(**loader, sampler=dict(type='DefaultSampler', shuffle=False), dataset=val_set)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
