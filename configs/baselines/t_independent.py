"""One subnet of AutoFormer-T trained standalone from scratch: the reference for weight sharing.

tools/dist_train.sh configs/baselines/t_independent.py 8 \\
    --cfg-options model.backbone.arch=SUBNET.json

GPUs: 8, batch 8 x 128. Six random subnets: top-1 76.9 75.5 77.5 76.3 77.4 78.1 (published,
but not which subnets); not run here. The default is the subnet that AutoFormer's authors found.
"""

_base_ = '../autoformer_t_supernet.py'

model = dict(backbone=dict(arch='configs/subnets/autoformer_t.json'))
train_cfg = dict(_delete_=True, type='tas_lora.ResumableTrainLoop', max_epochs=500, val_interval=10)
val_cfg = dict(_delete_=True)
test_cfg = dict(_delete_=True)
