# All weights of a pretrained network learn from a frozen copy of it. Chosen here: rates that are
# usual for fine-tuning one (1e-5 to 5e-5; at 2e-4 it forgets), lower by a quarter for each block
# further down.
optim_wrapper = dict(
    type='tas_lora.SupernetOptimWrapper',
    constructor='LearningRateDecayOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=4e-5, weight_decay=0.05),
    paramwise_cfg=dict(layer_decay_rate=0.75, norm_decay_mult=0.0, flat_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=29, begin=1, end=30, convert_to_iter_based=True),
]

train_cfg = dict(
    type='tas_lora.SubnetSamplingTrainLoop',
    max_epochs=30,
    val_interval=5,
    seed=0,
    # labels=1.0 adds the labels' loss; at 0 the images need none.
    strategy=dict(type='tas_lora.ParentDistillation', logits=1.0, features=1.0, labels=0.0),
)
val_cfg = dict(type='tas_lora.SubnetValLoop', subnets=dict(smallest='smallest', largest='largest'))
test_cfg = dict(
    type='tas_lora.SubnetTestLoop', subnets=dict(smallest='smallest', largest='largest')
)
