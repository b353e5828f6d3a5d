"""The tiny SAM trained on stamps from scratch, as a substitute for SAM's own training.

python projects/nas_lora/tools/train.py projects/nas_lora/configs/pretrain_stamps.py

GPUs: 0, two minutes on one CPU core. IoU .452 on the test set of tools/prepare_stamps.py (measured,
one seed; .514 on its validation set, whose photographs in the background are different).
"""

_base_ = [
    '_base_/sam_tiny.py',
    '_base_/stamps.py',
    '_base_/runtime.py',
]

optim_wrapper = dict(
    type='tas_lora.SupernetOptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=4, begin=1, end=5, convert_to_iter_based=True),
]
train_cfg = dict(type='tas_lora.ResumableTrainLoop', max_epochs=5, val_interval=1)
