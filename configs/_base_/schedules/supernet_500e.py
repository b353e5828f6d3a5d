# AutoFormer's schedule: AdamW, learning rate 5e-4 x batch / 512, cosine to 1e-5, 20 epochs of
# warm-up from 1e-6, no weight decay on biases, norms, class token and positions.
optim_wrapper = dict(
    type='tas_lora.SupernetOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={'.cls_token': dict(decay_mult=0.0), '.pos_embed': dict(decay_mult=0.0)},
    ),
)
param_scheduler = dict(type='tas_lora.AutoFormerLR', epochs=500, warmup_epochs=20)
auto_scale_lr = dict(base_batch_size=1024, enable=False)

train_cfg = dict(type='tas_lora.SubnetSamplingTrainLoop', max_epochs=500, val_interval=10, seed=0)
val_cfg = dict(type='tas_lora.SubnetValLoop', subnets=dict(smallest='smallest', largest='largest'))
test_cfg = dict(
    type='tas_lora.SubnetTestLoop', subnets=dict(smallest='smallest', largest='largest')
)
