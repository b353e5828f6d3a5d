"""Nuclei, NAS-PC-LoRA with one of three channels in the cell.

python projects/nas_lora/tools/train.py projects/nas_lora/configs/nuclei_nas_pc_third.py

GPUs: 0. Scores of three seeds: results/report.md.
"""

_base_ = ['nuclei_nas_lora.py']

model = dict(adapter=dict(ratio=1 / 3))
