"""TAS-LoRA-T on a supernet that DYNAS trained, stage 2.

tools/dist_train.sh configs/baselines/t_dynas_moLE.py 4

GPUs: 4, batch 4 x 256. Searched subnet, 5.9M parameters: top-1 75.9 +-0.0 (published);
not run here.
"""

_base_ = '../autoformer_t_moLE.py'

load_from = 'work_dirs/t_dynas/epoch_500.pth'
