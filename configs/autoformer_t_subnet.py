"""The exported subnet found in AutoFormer-T with experts, as a standalone network: stage 4.

python tools/test.py configs/autoformer_t_subnet.py exported/autoformer_t/weights.safetensors

GPUs: 1. 5.9M parameters: top-1 75.7 +-0.1 (published); not run here. To continue training it
on 8 GPUs (batch 8 x 128, recipe chosen here): tools/dist_train.sh configs/autoformer_t_subnet.py 8
"""

_base_ = [
    '_base_/models/subnet_t.py',
    '_base_/datasets/imagenet_autoformer.py',
    '_base_/schedules/finetune_30e.py',
    '_base_/default_runtime.py',
]
load_from = 'exported/autoformer_t/weights.safetensors'
