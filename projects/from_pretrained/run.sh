#!/usr/bin/env bash
# The whole comparison, in the root of the repository: original, order, ways, others, report.
set -euo pipefail
here=$(dirname "$0")
original=data/emoji_vit_s_98.safetensors
[ -e "$original" ] || python "$here/finetune.py" --amp --out "$original"
[ -e data/emoji_vit ] || python tools/supernet_from.py timm:vit_small_patch14_dinov2 \
    --checkpoint "$original" --img-size 98 --out data/emoji_vit
[ -e data/emoji_ordered ] || python tools/order.py "$here/configs/emoji.py" \
    --out data/emoji_ordered --limit macs=0.25 --batches 4
ways="python $here/ways.py data/emoji_ordered/ordered.py --unordered $here/configs/emoji.py --amp"
$ways --seeds 0 --ways unordered ordered 'all weights' 'experts + shared' 'one LoRA' \
    'all weights, polished'
$ways --seeds 1 --no-search --ways 'all weights' 'experts + shared' 'one LoRA'
$ways --seeds 2 --no-search --ways 'all weights'
python "$here/one_size.py" data/emoji_ordered/ordered.py --amp
cp data/emoji_ordered/damage.json "$here/results/"
python "$here/report.py"
experts=data/emoji_ordered/ways/experts___shared_300_0
cp "$experts/ordered.py" data/emoji_ordered/experts.py  # a name of its own
python tools/analysis/feature_similarity.py data/emoji_ordered/experts.py "$experts/epoch_4.pth" \
    --beside ordered=data/emoji_ordered/ordered.py:data/emoji_ordered/ordered.pth \
    --data val --images 128 --out data/emoji_features
python tools/analysis/gates.py data/emoji_ordered/experts.py "$experts/epoch_4.pth" \
    --out data/emoji_gates
