"""The digits with patches of 2 or 4 pixels: search under a limit on FLOPs, stage 3.

python tools/search.py configs/digits_patches_search.py work_dirs/digits_patches_moLE/epoch_12.pth

GPUs: 0, seconds on two CPU cores. Measured top-1: configs/README.md.
"""

_base_ = ['./digits_search.py']

space = dict(patch_size=[2, 4])
model = dict(
    backbone=dict(patch_size=[2, 4], mole=dict(num_experts=24)),
    router=dict(
        space=dict(patch_size=[2, 4]),
        attributes=['num_heads', 'mlp_ratio', 'embed_dim', 'patch_size'],
    ),
)
val_cfg = dict(
    space=dict(patch_size=[2, 4]),
    constraints=dict(_delete_=True, flops=(None, 500e3)),
)
test_cfg = dict(space=dict(patch_size=[2, 4]))
