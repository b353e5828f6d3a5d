"""Nuclei, LoRA of rank 3 on the fused qkv of every block.

python projects/nas_lora/tools/train.py projects/nas_lora/configs/nuclei_lora.py

GPUs: 0. Scores of three seeds: results/report.md.
"""

_base_ = ['_base_/nuclei_adapted.py']

model = dict(adapter=dict(type='nas_lora.LoRALinear'))
