"""Nuclei, NAS-LoRA with T_B = 10 of 20 epochs, for the paper's 20 of 40.

python projects/nas_lora/tools/train.py projects/nas_lora/configs/nuclei_nas_tb10.py

GPUs: 0. Scores of three seeds: results/report.md.
"""

_base_ = ['nuclei_nas_lora.py']

custom_hooks = [dict(type='nas_lora.StageWiseHook', weight_epochs=10)]
