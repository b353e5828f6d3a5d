"""Nuclei, NAS-LoRA without max pooling: its cells fold exactly into one convolution each.

python projects/nas_lora/tools/train.py projects/nas_lora/configs/nuclei_nas_fold.py

GPUs: 0. Scores of three seeds: results/report.md.
"""

_base_ = ['nuclei_nas_lora.py']

model = dict(
    adapter=dict(
        operations=[
            'none',
            'avg_pool_3x3',
            'skip_connect',
            'sep_conv_3x3',
            'sep_conv_5x5',
            'dil_conv_3x3',
            'dil_conv_5x5',
        ]
    )
)
