"""The exported subnet found in AutoFormer-S with experts, as a standalone network: stage 4.

python tools/test.py configs/autoformer_s_subnet.py exported/autoformer_s/weights.safetensors

GPUs: 1. 22.9M parameters: top-1 81.9 +-0.1 (published); not run here. To continue training it
on 8 GPUs (batch 8 x 128, recipe chosen here): tools/dist_train.sh configs/autoformer_s_subnet.py 8
"""

_base_ = [
    '_base_/models/subnet_s.py',
    '_base_/datasets/imagenet_autoformer.py',
    '_base_/schedules/finetune_30e.py',
    '_base_/default_runtime.py',
]
load_from = 'exported/autoformer_s/weights.safetensors'
