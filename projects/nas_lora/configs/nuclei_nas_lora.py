"""Nuclei, NAS-LoRA: rank 3, all channels in the cell, eight operations of the linear preset.

python projects/nas_lora/tools/train.py projects/nas_lora/configs/nuclei_nas_lora.py

GPUs: 0. Scores of three seeds: results/report.md.

T_B = 5 of 20 epochs, for the paper's 10 of 40. The rate of the architecture parameters is ten times
that of the weights, as in the paper. At the paper's 1e-3, some 40 steps would move them by .04 and
hardly change their softmax.
"""

_base_ = ['_base_/nuclei_adapted.py']

model = dict(adapter=dict(type='nas_lora.NASLoRALinear'))
optim_wrapper = dict(
    _delete_=True,
    constructor='nas_lora.StageWiseOptimWrapperConstructor',
    weights=dict(optimizer=dict(type='Adam', lr=1e-2)),
    alpha=dict(optimizer=dict(type='Adam', lr=1e-1)),
)
custom_hooks = [dict(type='nas_lora.StageWiseHook', weight_epochs=5)]
