"""Nuclei, all of the tiny SAM trained: the baseline for the adapters.

python projects/nas_lora/tools/train.py projects/nas_lora/configs/nuclei_full.py

GPUs: 0. Scores of three seeds: results/report.md. The rate was chosen as for the adapters.
"""

_base_ = ['_base_/nuclei_adapted.py']

model = dict(trainable=['.*'])
optim_wrapper = dict(optimizer=dict(lr=1e-3))
