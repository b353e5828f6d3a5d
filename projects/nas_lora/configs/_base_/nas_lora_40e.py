"""NAS-LoRA on SAM base by the published schedule: rank 3 on q, k and v of every block.

T_B = 10 epochs of weights only, then weights and architecture parameters alternate to epoch 40.
"""

_base_ = ['sam_base.py', 'runtime.py']

model = dict(
    _delete_=True,
    type='nas_lora.AdaptedModel',
    model={{_base_.model}},
    adapter=dict(type='nas_lora.NASLoRALinear', rank=3),
)
optim_wrapper = dict(
    constructor='nas_lora.StageWiseOptimWrapperConstructor',
    weights=dict(optimizer=dict(type='Adam', lr=1e-4)),
    alpha=dict(optimizer=dict(type='Adam', lr=1e-3)),
)
custom_hooks = [dict(type='nas_lora.StageWiseHook', weight_epochs=10)]
train_cfg = dict(type='tas_lora.ResumableTrainLoop', max_epochs=40, val_interval=5)
