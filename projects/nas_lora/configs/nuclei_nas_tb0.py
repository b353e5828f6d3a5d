"""Nuclei, NAS-LoRA with T_B = 0: weights and architecture parameters alternate from the start.

python projects/nas_lora/tools/train.py projects/nas_lora/configs/nuclei_nas_tb0.py

GPUs: 0. Scores of three seeds: results/report.md.
"""

_base_ = ['nuclei_nas_lora.py']

custom_hooks = [dict(type='nas_lora.StageWiseHook', weight_epochs=0)]
