# Fine-tuning of a found subnet on ImageNet. No recipe is published; this one is chosen here: AdamW
# with a fiftieth of AutoFormer's rate and its weight decay, batches of 1024, 30 epochs.
optim_wrapper = dict(
    type='tas_lora.SupernetOptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, begin=1, end=30, convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=1024, enable=False)

# A single network: there are no subnets to draw.
train_cfg = dict(type='tas_lora.ResumableTrainLoop', max_epochs=30, val_interval=1)
val_cfg = dict()
test_cfg = dict()
