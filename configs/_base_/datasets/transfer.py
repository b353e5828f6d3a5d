# Shared by the small data sets: images of 224 pixels, RandAugment, no random erasing (as DeiT
# fine-tunes). Mixup and CutMix are in the model's train_cfg. Each data set adds how its images are
# loaded and its number of classes.
data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
bicubic = dict(backend='pillow', interpolation='bicubic')

train_transforms = [
    dict(type='RandomResizedCrop', scale=224, crop_ratio_range=(0.2, 1.0), **bicubic),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='RandAugment',
        policies='timm_increasing',
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(pad_val=128, interpolation='bicubic'),
    ),
    dict(type='PackInputs'),
]
test_transforms = [
    dict(type='ResizeEdge', scale=256, edge='short', **bicubic),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
loader = dict(batch_size=64, num_workers=8, persistent_workers=True)
train_dataloader = dict(**loader, drop_last=True, sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(**loader, sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
