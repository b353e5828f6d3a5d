"""Nuclei under a microscope, NAS-LoRA in a tiny SAM that was pretrained on stamps.

python projects/nas_lora/tools/train.py projects/nas_lora/configs/sam_tiny_nuclei.py

GPUs: 0, half a minute on one CPU core. IoU: not run with this version.

T_B = 5 of 20 epochs, for the paper's 10 of 40, at a constant rate, as no schedule is published. The
rates are a hundred times the paper's 1e-4 and 1e-3, as there are 100 steps instead of thousands.
"""

_base_ = ['_base_/sam_tiny_on_stamps.py', '_base_/nuclei.py', '_base_/runtime.py']

model = dict(
    _delete_=True,
    type='nas_lora.AdaptedModel',
    model={{_base_.model}},
    adapter=dict(type='nas_lora.NASLoRALinear'),
)
optim_wrapper = dict(
    constructor='nas_lora.StageWiseOptimWrapperConstructor',
    weights=dict(optimizer=dict(type='Adam', lr=1e-2)),
    alpha=dict(optimizer=dict(type='Adam', lr=1e-1)),
)
custom_hooks = [dict(type='nas_lora.StageWiseHook', weight_epochs=5)]
train_cfg = dict(type='tas_lora.ResumableTrainLoop', max_epochs=20, val_interval=10)
