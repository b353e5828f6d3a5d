"""NAS-LoRA in a frozen DINOv2-small: rank 3 on q, k and v of every block, T_B a quarter.

Products are in bfloat16 in training. The rate of the architecture parameters is ten times that of
the weights, as in the paper; both are larger than the paper's, as there are a hundred steps.
"""

_base_ = ['dinov2_small.py', 'runtime.py']

model = dict(
    _delete_=True,
    type='nas_lora.AdaptedModel',
    model={{_base_.model}},
    adapter=dict(type='nas_lora.NASLoRALinear'),
)
optim_wrapper = dict(
    constructor='nas_lora.StageWiseOptimWrapperConstructor',
    amp='bfloat16',
    weights=dict(optimizer=dict(type='Adam', lr=3e-3, fused=True)),
    alpha=dict(optimizer=dict(type='Adam', lr=3e-2, fused=True)),
)
