"""Nuclei, deep visual prompt tuning: 5 prompts in every block.

python projects/nas_lora/tools/train.py projects/nas_lora/configs/nuclei_vpt.py

GPUs: 0. Scores of three seeds: results/report.md.
"""

_base_ = ['_base_/nuclei_adapted.py']

model = dict(
    adapter=dict(type='nas_lora.PromptedAttention'),
    targets=[r'layers\.\d+\.attn'],
)
