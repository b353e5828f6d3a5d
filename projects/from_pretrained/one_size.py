"""What others do for one size at a time: from scratch, distillation, Torch-Pruning.

python projects/from_pretrained/one_size.py data/emoji_ordered/ordered.py --iters 300

CONFIG is that of ways.py, and the architectures of 'scratch' and 'distilled' are its first subnets
of half and a quarter of the multiply-adds. Needs torch-pruning. What has a record already is not
run again.
"""

import argparse
import time
from copy import deepcopy
from pathlib import Path

import timm
import torch
from from_pretrained.pictures import SPLITS, accuracy, fit, load_images
from from_pretrained.pruning import macs_of, prune
from from_pretrained.records import Records
from from_pretrained.subnets import SHARES, subnets_of
from safetensors.torch import load_file
from timm.layers import trunc_normal_
from timm.models.vision_transformer import init_weights_vit_timm
from torch import Tensor, nn
from torch.nn import functional as F

from tas_lora import SearchSpace, apis, cli, count_flops
from tas_lora.checks import positive
from tas_lora.models.export import plain_network
from tas_lora.models.plain_vit import PlainViT

MODEL = 'vit_small_patch14_dinov2'
METHODS = ('isomorphic', 'scratch', 'distilled')
SCORED = 4  # batches that Torch-Pruning scores on, as tools/order.py does


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('config', help='ordered.py of tools/order.py')
    add('--original', default='data/emoji_vit_s_98.safetensors', help='by finetune.py')
    add('--data', default='data/emoji', help='class folders by split, by fetch.py')
    add('--methods', nargs='+', choices=METHODS, default=list(METHODS))
    add('--iters', type=int, default=300, help='steps of a training')
    add('--batch-size', type=int, default=24)
    add('--rate', type=float, default=4e-5, help='of pruned networks')
    add('--fresh-rate', type=float, default=5e-4, help='of networks from random weights')
    add('--seeds', nargs='+', type=int, default=[0])
    add('--amp', action='store_true', help='bfloat16 products in training')
    add('--out', default=str(Path(__file__).parent / 'results' / 'one_size.json'), help='records')
    args = parser.parse_args()
    positive(args.iters, '--iters', int)
    return args


class OneSize:
    """Trains one network at a time, all with the same pictures, steps and teacher.

    Args:
        args: Command line.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        supernet = apis.load_supernet(apis.load_config(args.config))
        self.spec, self.pooling = supernet.image_spec, supernet.backbone.out_type
        self.img_size = self.spec['img_size']
        space = SearchSpace.coerce(apis.load_config(args.config).space.to_dict())
        self.subnets = subnets_of(space, self.spec)
        self.pictures = {name: load_images(Path(args.data, name)) for name in ('train', *SPLITS)}
        self.teacher = timm.create_model(
            MODEL, img_size=self.img_size, num_classes=self.spec['num_classes']
        )
        self.teacher.load_state_dict(load_file(args.original))
        self.teacher.eval()

    def run(self, method: str, share: str, seed: int) -> dict:
        """Make, train and test a network; returns its record."""
        torch.manual_seed(seed)
        start = time.process_time()
        made = self.fresh if method in ('scratch', 'distilled') else self.pruned
        model, macs = made(share)
        before = self.top1(model, 'test')
        self.train(model, method)
        seconds = time.process_time() - start
        top1 = {name: self.top1(model, name) for name in SPLITS}
        return dict(
            way=method,
            size=share,
            seed=seed,
            iters=self.args.iters,
            cpu_seconds=round(seconds),
            macs=macs,
            params=sum(p.numel() for p in model.parameters()),
            untrained=before,
            top1=top1,
        )

    def top1(self, model: nn.Module, split: str) -> float:
        """Top-1 accuracy on a split, %."""
        return accuracy(model, *self.pictures[split], self.img_size, self.args.amp)

    def fresh(self, share: str) -> tuple[nn.Module, float]:
        """An architecture of the space, with random weights as timm draws them."""
        subnet = self.subnets[f'{share}_1']
        model = PlainViT(**plain_network(subnet, self.spec, self.pooling))
        model.apply(init_weights_vit_timm)
        for tokens in (model.pos_embed, model.cls_token):
            trunc_normal_(tokens, std=0.02)
        return model, count_flops(subnet, **self.spec)

    def pruned(self, share: str) -> tuple[nn.Module, float]:
        """The original, cut by Torch-Pruning."""
        images, labels = self.pictures['train']
        size = self.args.batch_size
        chosen = torch.randperm(len(images))[: SCORED * size].split(size)
        batches = [(images[batch], labels[batch]) for batch in chosen]
        model = prune(deepcopy(self.teacher), SHARES[share], batches, self.img_size)
        return model, macs_of(model, self.img_size)

    def train(self, model: nn.Module, method: str) -> None:
        """From labels ('scratch'), labels and teacher ('distilled'), or the teacher as ours do."""
        args, fresh = self.args, method in ('scratch', 'distilled')
        loss_of = dict(scratch=self._labels, distilled=self._both).get(method, self._teacher)
        groups = [dict(params=list(model.parameters()), lr=args.fresh_rate if fresh else args.rate)]
        fit(
            model,
            self.pictures['train'],
            lambda inputs, labels: loss_of(model, inputs, labels),
            groups,
            steps=args.iters,
            batch_size=args.batch_size,
            img_size=self.img_size,
            amp=args.amp,
        )

    def _labels(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(inputs).float(), labels, label_smoothing=0.1)

    def _both(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            teacher = self.teacher(inputs).float()
        logits = model(inputs).float()
        return divergence(logits, teacher) + F.cross_entropy(logits, labels)

    def _teacher(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """As ``ParentDistillation``: divergence of logits, and 1 - cosine of class tokens."""
        with torch.no_grad():
            other = self.teacher.forward_features(inputs)
            teacher = self.teacher.forward_head(other).float()
        own = model.forward_features(inputs)
        cosine = F.cosine_similarity(own[:, 0].float(), other[:, 0].float(), dim=-1)
        return divergence(model.forward_head(own).float(), teacher) + 1 - cosine.mean()


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student), a mean over images."""
    own, target = logits.log_softmax(-1), teacher.log_softmax(-1)
    return F.kl_div(own, target, reduction='batchmean', log_target=True)


def main() -> None:
    """Run all that has no record yet."""
    args = parse_args()
    records = Records(Path(args.out))
    bench = OneSize(args)
    for seed in args.seeds:
        for method in args.methods:
            for share in SHARES:
                key = dict(way=method, size=share, seed=seed, iters=args.iters)
                if not records.has(key):
                    record = records.add(bench.run(method, share, seed))
                    cli.say(f'{method}, {share}, seed {seed}: {record["top1"]}', flush=True)


if __name__ == '__main__':
    cli.run(main)
