"""Nuclei, NAS-LoRA with operations on single tokens only: it merges exactly into the encoder.

python projects/nas_lora/tools/train.py projects/nas_lora/configs/nuclei_nas_token.py

GPUs: 0. Scores of three seeds: results/report.md.
"""

_base_ = ['nuclei_nas_lora.py']

model = dict(adapter=dict(operations=['none', 'skip_connect']))
