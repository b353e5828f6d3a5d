"""Nuclei, one random operation in each cell, not searched.

python projects/nas_lora/tools/train.py projects/nas_lora/configs/nuclei_random.py

GPUs: 0. Scores of three seeds: results/report.md.
"""

_base_ = ['_base_/nuclei_adapted.py']

model = dict(adapter=dict(type='nas_lora.NASLoRALinear', choice='random'))
