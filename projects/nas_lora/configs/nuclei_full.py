"""Nuclei, all of the tiny SAM trained, from the one that stamps trained.

python $TOOLS/train.py configs/nuclei_full.py

GPUs: 0, half a minute on one CPU core. IoU .836 over all pixels of the 16 test tiles (measured, one
seed).
"""

_base_ = [
    '_base_/sam_tiny.py',
    '_base_/nuclei.py',
    '_base_/runtime.py',
]

model = dict(pretrained='work_dirs/pretrain_stamps/epoch_5.pth')
optim_wrapper = dict(
    type='tas_lora.SupernetOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
)
param_scheduler = dict(type='CosineAnnealingLR', T_max=40, convert_to_iter_based=True)
train_cfg = dict(type='tas_lora.ResumableTrainLoop', max_epochs=40, val_interval=20)
val_cfg = dict()
test_cfg = dict()
