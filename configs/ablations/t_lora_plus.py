"""TAS-LoRA-T with up projections at twenty times the down projections' rate (LoRA+), no decay.

tools/dist_train.sh configs/ablations/t_lora_plus.py 4

GPUs: 4, batch 4 x 256. Searched subnet in the T space: top-1 not run; rates not tuned. A small
version on Fashion-MNIST: projects/feature_collapse, methods plus and plus_dynas.
"""

_base_ = '../autoformer_t_moLE.py'

optim_wrapper = dict(
    experts=dict(
        optimizer=dict(lr=2e-4, weight_decay=0.0),
        paramwise_cfg=dict(custom_keys=dict(lora_b=dict(lr_mult=20))),
    )
)
