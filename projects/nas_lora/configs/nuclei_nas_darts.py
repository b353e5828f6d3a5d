"""Nuclei, NAS-LoRA with the operations as DARTS has them: stacked, ReLU, normalisation.

python projects/nas_lora/tools/train.py projects/nas_lora/configs/nuclei_nas_darts.py

GPUs: 0. Scores of three seeds: results/report.md.
"""

_base_ = ['nuclei_nas_lora.py']

model = dict(adapter=dict(preset='darts'))
