# TAS-LoRA's schedule: 5 epochs of experts only (AdamW, warm-up from 1e-5 to 5e-4), then experts
# and router (SGD, 1e-1) together on a cosine.
# Not published, chosen here: weight decay 0.05 (AutoFormer's) on the experts, none on the
# router; no SGD momentum; final rates 1e-5 (AutoFormer's) and 0.
optim_wrapper = dict(
    constructor='tas_lora.MoLEOptimWrapperConstructor',
    type='tas_lora.SupernetOptimWrapper',
    experts=dict(
        optimizer=dict(type='AdamW', lr=5e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05)
    ),
    router=dict(optimizer=dict(type='SGD', lr=1e-1)),
)
param_scheduler = dict(
    experts=[
        dict(type='LinearLR', start_factor=0.02, begin=0, end=5, convert_to_iter_based=True),
        dict(type='CosineAnnealingLR', T_max=45, eta_min=1e-5, begin=5, end=50),
    ],
    router=[dict(type='CosineAnnealingLR', T_max=45, eta_min=0.0, begin=5, end=50)],
)
auto_scale_lr = dict(base_batch_size=1024, enable=False)
custom_hooks = [
    dict(type='tas_lora.MoLEHook', router_warmup_epochs=5),
    dict(type='tas_lora.MoLEStatsHook'),
]

train_cfg = dict(type='tas_lora.SubnetSamplingTrainLoop', max_epochs=50, val_interval=5, seed=0)
val_cfg = dict(type='tas_lora.SubnetValLoop', subnets=dict(smallest='smallest', largest='largest'))
test_cfg = dict(
    type='tas_lora.SubnetTestLoop', subnets=dict(smallest='smallest', largest='largest')
)
