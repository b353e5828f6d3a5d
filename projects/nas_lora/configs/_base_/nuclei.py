"""Tiles of stained nuclei: tools/prepare_nuclei.py writes data/nuclei.

Some tiles hold little or no nucleus, so one ratio over all pixels is the more stable score.
"""

_base_ = ['tiles_64.py']

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='nas_lora.LoadMask'),
    dict(type='RandomFlip', prob=[0.25, 0.25], direction=['horizontal', 'vertical']),
    dict(type='nas_lora.PackMask'),
]
train_dataloader = dict(
    batch_size=8, dataset=dict(data_root='data/nuclei/train', pipeline=train_pipeline)
)
val_dataloader = dict(dataset=dict(data_root='data/nuclei/val'))
test_dataloader = dict(dataset=dict(data_root='data/nuclei/test'))
val_evaluator = dict(average='dataset')
test_evaluator = val_evaluator
