"""The published schedule: T_B = 10 epochs of weights only, then both in turn until epoch 40."""

optim_wrapper = dict(
    constructor='nas_lora.StageWiseOptimWrapperConstructor',
    weights=dict(optimizer=dict(type='Adam', lr=1e-4)),
    alpha=dict(optimizer=dict(type='Adam', lr=1e-3)),
)
param_scheduler = None
custom_hooks = [dict(type='nas_lora.StageWiseHook', weight_epochs=10, alternate='batch')]
train_cfg = dict(type='tas_lora.ResumableTrainLoop', max_epochs=40, val_interval=5)
val_cfg = dict()
test_cfg = dict()
