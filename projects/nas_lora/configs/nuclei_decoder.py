"""Nuclei, only the decoder trained.

python projects/nas_lora/tools/train.py projects/nas_lora/configs/nuclei_decoder.py

GPUs: 0. Scores of three seeds: results/report.md.
"""

_base_ = ['_base_/nuclei_adapted.py']
