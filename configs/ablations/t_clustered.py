"""TAS-LoRA-T with the two smaller widths as one choice, which reduces K from 12 to 8.

tools/dist_train.sh configs/ablations/t_clustered.py 4

GPUs: 4, batch 4 x 256. Searched subnet in the T space: top-1 not run; the paper names
the growth of K as an open question and gives no figure.
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
