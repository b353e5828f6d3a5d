"""AutoFormer-T supernet by the sandwich rule with in-place distillation, stage 1.

tools/dist_train.sh configs/baselines/t_sandwich.py 8

GPUs: 8, batch 8 x 128. Top-1 not run; neither paper has a figure. It trains four subnets per
iteration, so an epoch costs about as much as four with uniform sampling.
"""

_base_ = '../autoformer_t_supernet.py'

train_cfg = dict(strategy=dict(type='tas_lora.SandwichRule', num_random=2))
