# Fine-tuning on a small data set. No recipe is published; this one is chosen here, after DeiT's:
# SGD with momentum, batches of 512, five epochs of warm-up, then a cosine to 0; 300 epochs.
optim_wrapper = dict(
    type='tas_lora.SupernetOptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, begin=5, end=300, convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=512, enable=False)

# A single network: there are no subnets to draw.
train_cfg = dict(type='tas_lora.ResumableTrainLoop', max_epochs=300, val_interval=10)
val_cfg = dict()
test_cfg = dict()
