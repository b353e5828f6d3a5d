"""Nuclei, bottleneck adapters after attention and MLP of every block.

python projects/nas_lora/tools/train.py projects/nas_lora/configs/nuclei_adapter.py

GPUs: 0. Scores of three seeds: results/report.md.
"""

_base_ = ['_base_/nuclei_adapted.py']

model = dict(
    adapter=dict(type='nas_lora.BottleneckAdapter'),
    targets=[r'layers\.\d+\.(attn|ffn\.layers)'],
)
