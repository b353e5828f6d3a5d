"""The whole AutoFormer-T supernet trained without experts for the 50 epochs of stage 2.

tools/dist_train.sh configs/baselines/t_full_finetune.py 4

GPUs: 4, batch 4 x 256. Searched subnet, 5.9M parameters: top-1 "gains almost nothing" over the
supernet's 74.7 (published, without a figure); not run here. The rates are not published;
these are the experts'.
"""

_base_ = '../autoformer_t_supernet.py'

load_from = 'work_dirs/autoformer_t_supernet/epoch_500.pth'
train_dataloader = dict(batch_size=256)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=45, eta_min=1e-5, begin=5, end=50),
]
train_cfg = dict(max_epochs=50, val_interval=5)
