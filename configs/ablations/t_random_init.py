"""TAS-LoRA-T with random router initialisation: one head for all groups.

tools/dist_train.sh configs/ablations/t_random_init.py 4

GPUs: 4, batch 4 x 256. Searched subnet in the T space: top-1 75.4 (published); not run here.
"""

_base_ = '../autoformer_t_moLE.py'

model = dict(router=dict(init='random'))
