"""The found subnet as an ordinary backbone of MMPretrain's own classifier, with its head.

python $TOOLS/train.py configs/finetune.py
python $TOOLS/test.py configs/finetune.py work_dirs/finetune/epoch_10.pth
"""

_base_ = ['_base_/data.py', '_base_/runtime.py', '../exported/architecture.json']

network = _base_.network
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='tas_lora.ElasticViT',
        arch={{_base_.subnet}},
        img_size={{_base_.img_size}},  # positions are resized if it changes
        patch_size=network.patch_size,
        in_channels=network.in_channels,
        head_dim=network.head_dim,
        max_relative_position=network.max_relative_position,
        out_type=network.pooling,
        frozen_stages=1,
        init_cfg=dict(type='Pretrained', checkpoint='exported/weights.safetensors'),
    ),
    head=dict(
        type='LinearClsHead',
        num_classes={{_base_.num_classes}},
        in_channels=network.embed_dim,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1),
    ),
)

optim_wrapper = dict(optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.05))
train_cfg = dict(by_epoch=True, max_epochs=10, val_interval=5)
val_cfg = dict()
test_cfg = dict()
