# Supernets that two CPU cores train in minutes: AdamW, two epochs of warm-up, then a cosine to 0.
# Chosen here: rates above the paper's, for a thousandth of its iterations.
optim_wrapper = dict(
    type='tas_lora.SupernetOptimWrapper',
    optimizer=dict(type='AdamW', lr=4e-3, weight_decay=0.05),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=28, begin=2, end=30, convert_to_iter_based=True),
]

train_cfg = dict(type='tas_lora.SubnetSamplingTrainLoop', max_epochs=30, val_interval=10, seed=0)
val_cfg = dict(type='tas_lora.SubnetValLoop', subnets=dict(smallest='smallest', largest='largest'))
test_cfg = dict(
    type='tas_lora.SubnetTestLoop', subnets=dict(smallest='smallest', largest='largest')
)
