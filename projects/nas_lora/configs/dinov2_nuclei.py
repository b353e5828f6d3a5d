"""Nuclei under a microscope, NAS-LoRA in DINOv2-small.

python projects/nas_lora/tools/train.py projects/nas_lora/configs/dinov2_nuclei.py

GPUs: 0, half a minute on one CPU core. Scores of three seeds: the project's README.
"""

_base_ = ['_base_/nas_lora_dinov2.py', '_base_/nuclei.py']

resize = dict(type='Resize', scale=(112, 112), keep_ratio=False)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='nas_lora.LoadMask'),
    resize,
    dict(type='RandomFlip', prob=[0.25, 0.25], direction=['horizontal', 'vertical']),
    dict(type='nas_lora.PackMask'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='nas_lora.LoadMask'),
    resize,
    dict(type='nas_lora.PackMask'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
custom_hooks = [dict(type='nas_lora.StageWiseHook', weight_epochs=4)]
train_cfg = dict(type='tas_lora.ResumableTrainLoop', max_epochs=16, val_interval=4)
