"""TAS-LoRA-S with random router initialisation: one head for all groups.

tools/dist_train.sh configs/ablations/s_random_init.py 8

GPUs: 8, batch 8 x 128. Searched subnet in the S space: top-1 81.8 (published); not run here.
"""

_base_ = '../autoformer_s_moLE.py'

model = dict(router=dict(init='random'))
