"""iNaturalist 2019, fine-tuned from an exported subnet of the S space with experts.

tools/dist_train.sh configs/transfer/s_inat2019.py 8

GPUs: 8, batch 8 x 64. Top-1 78.0 (published for TAS-LoRA-S; AutoFormer-S 77.4); not run here.
Recipe chosen here; data: configs/_base_/datasets/inaturalist2019.py.
"""

_base_ = [
    '../_base_/models/subnet_s.py',
    '../_base_/datasets/inaturalist2019.py',
    '../_base_/schedules/transfer.py',
    '../_base_/default_runtime.py',
]
model = dict(head=dict(num_classes={{_base_.data_preprocessor.num_classes}}))
load_from = 'exported/autoformer_s/weights.safetensors'
