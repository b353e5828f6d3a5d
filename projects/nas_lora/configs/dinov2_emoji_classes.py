"""54 classes of emoji, NAS-LoRA in DINOv2-small: classification, which the paper leaves open.

python projects/nas_lora/tools/train.py projects/nas_lora/configs/dinov2_emoji_classes.py

GPUs: 0, a minute on one CPU core. Scores of three seeds are in the project's README, at the rates
that tuning chose (1e-3, alpha 3e-2), which compare.py sets; those below had 41.7. An eighth of
the training pictures, 4 a class; half of the others. projects/from_pretrained/fetch.py writes
data/emoji.
"""

_base_ = ['_base_/runtime.py']

model = dict(
    type='nas_lora.AdaptedModel',
    model=dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(
            type='nas_lora.ViTEncoder',
            source='timm:vit_small_patch14_dinov2',
            checkpoint='data/dinov2_s.safetensors',
            img_size=98,
            out='token',
        ),
        head=dict(
            type='mmpretrain.LinearClsHead',
            num_classes=54,
            in_channels=384,
            loss=dict(type='mmpretrain.LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        ),
        data_preprocessor=dict(
            type='mmpretrain.ClsDataPreprocessor',
            num_classes=54,
            mean=[123.675, 116.28, 103.53],
            std=[58.395, 57.12, 57.375],
            to_rgb=True,
        ),
    ),
    part='backbone',
    adapter=dict(type='nas_lora.NASLoRALinear'),
)
optim_wrapper = dict(
    constructor='nas_lora.StageWiseOptimWrapperConstructor',
    amp='bfloat16',
    weights=dict(optimizer=dict(type='Adam', lr=3e-3, fused=True)),
    alpha=dict(optimizer=dict(type='Adam', lr=3e-2, fused=True)),
)
custom_hooks = [dict(type='nas_lora.StageWiseHook', weight_epochs=2)]
train_cfg = dict(type='tas_lora.ResumableTrainLoop', max_epochs=8, val_interval=4)
val_cfg = test_cfg = dict(fp16=True)  # bfloat16 on a CPU

bicubic = dict(backend='pillow', interpolation='bicubic')
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=98, crop_ratio_range=(0.6, 1.0), **bicubic),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(98, 98), **bicubic),
    dict(type='PackInputs'),
]
loader = dict(num_workers=0, persistent_workers=False)
folders = dict(type='CustomDataset', ann_file='', with_label=True)
train_dataloader = dict(
    **loader,
    batch_size=8,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        **folders,
        data_prefix='data/emoji/train',
        indices=list(range(0, 1790, 8)),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    **loader,
    batch_size=64,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **folders,
        data_prefix='data/emoji/val',
        indices=list(range(0, 542, 2)),
        pipeline=test_pipeline,
    ),
)
test_dataloader = dict(
    **loader,
    batch_size=64,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **folders,
        data_prefix='data/emoji/test',
        indices=list(range(0, 854, 2)),
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
