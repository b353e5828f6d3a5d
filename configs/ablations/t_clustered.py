"""TAS-LoRA-T with the two smaller widths as one choice, so that K falls from 12 to 8.

tools/dist_train.sh configs/ablations/t_clustered.py 4

GPUs: 4, batch 4 x 256. Searched subnet in the T space: top-1 not run; the paper names
K's growth as an open end, and has no figure.
"""

_base_ = '../autoformer_t_moLE.py'

model = dict(
    backbone=dict(mole=dict(num_experts=8)),
    router=dict(
        grouping=dict(
            type='tas_lora.ArchitectureGroups', clusters=dict(embed_dim=[[192, 216], [240]])
        )
    ),
)
