# All weights of a pretrained network learn from a frozen copy of it. Chosen here: a rate that is
# usual for fine-tuning one. At 1e-4 and above DINOv2-small forgot, in 300 steps on emoji.
optim_wrapper = dict(
    type='tas_lora.SupernetOptimWrapper',
    optimizer=dict(type='AdamW', lr=4e-5, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, flat_decay_mult=0.0),
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
