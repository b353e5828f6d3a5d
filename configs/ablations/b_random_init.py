"""TAS-LoRA-B with random router initialisation: one head for all groups.

tools/dist_train.sh configs/ablations/b_random_init.py 8

GPUs: 8, batch 8 x 128. Searched subnet in the B space: top-1 82.5 (published); not run here.
"""

_base_ = '../autoformer_b_moLE.py'

model = dict(router=dict(init='random'))
