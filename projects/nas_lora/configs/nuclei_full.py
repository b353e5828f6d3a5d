"""Nuclei, all of the tiny SAM trained: the baseline that adapters are held against.

python projects/nas_lora/tools/train.py projects/nas_lora/configs/nuclei_full.py

GPUs: 0. Scores of three seeds: results/report.md. The rate was chosen as that of the adapters was.
"""

_base_ = ['_base_/nuclei_adapted.py']

model = dict(trainable=['.*'])
optim_wrapper = dict(optimizer=dict(lr=1e-3))
