"""TAS-LoRA-T with the supernet trained along with its experts, at half of stage 1's rate.

tools/dist_train.sh configs/ablations/t_joint.py 4

GPUs: 4, batch 4 x 256. Searched subnet in the T space: top-1 not run; the paper freezes the
supernet. A small version on Fashion-MNIST: projects/feature_collapse, method joint.
"""

_base_ = '../autoformer_t_moLE.py'

model = dict(freeze_supernet=False)
optim_wrapper = dict(
    supernet=dict(
        optimizer=dict(type='AdamW', lr=5e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
        paramwise_cfg=dict(  # AutoFormer's
            norm_decay_mult=0.0,
            bias_decay_mult=0.0,
            custom_keys={'.cls_token': dict(decay_mult=0.0), '.pos_embed': dict(decay_mult=0.0)},
        ),
    )
)
param_scheduler = dict(supernet=_base_.param_scheduler.experts)
