"""One net: trained, or trained on from where it was stopped, and measured."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from statistics import mean

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from safetensors.torch import save
from torch import Tensor

from tas_lora import Subnet, UserError, apis
from tas_lora.analysis.features import feature_similarity
from tas_lora.atomic_files import write_atomic
from tas_lora.errors import blame
from tas_lora.models import SupernetClassifier

from . import records
from .images import read_images
from .measure import predict, relative_change, scores, weights_in_use
from .plan import METHODS, Net
from .settings import Study, load

CURVES = ('delta_w', 'gate_shift', 'top_gate_kept')  # what MoLEStatsHook logs every epoch
SETS = dict(heldout='heldout_dataloader', test='test_dataloader')


def load_images(study: Study, name: str) -> tuple[Tensor, Tensor]:
    """Images and labels of 'heldout' or 'test'.

    Raises:
        UserError: If they are not there.
    """
    dataset = load('supernet', study.data_root, study.options)[SETS[name]].dataset
    innermost = dataset.get('dataset', dataset)
    innermost.pipeline = []
    with blame('no images; prepare_data.py writes them, --data-root names their folder'):
        images, labels = read_images(dataset)
    return images[: study.images], labels[: study.images]


def digest(study: Study, net: Net) -> str:
    """Digest of a net's config and of those it descends from."""
    start = None if net.start is None else digest(study, net.start)
    return records.digest_of(study.config(net), start)


def train(study: Study, net: Net) -> dict:
    """Train a net, or resume its training; returns what is known of its training."""
    cfg = study.config(net)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.test_cfg = cfg.test_dataloader = cfg.test_evaluator = None
    apis.resume(cfg)
    runner = apis.train(cfg)
    write_atomic(study.weights(net), save(runner.model.state_dict()))
    return _course(runner.message_hub, cfg, runner.iter)


def _course(hub: MessageHub, cfg: Config, iterations: int) -> dict:
    """Cost and curves of a training that has ended."""
    scalars = hub.log_scalars
    known = {name: scalars[f'train/{name}'].data for name in CURVES if f'train/{name}' in scalars}
    loss, per_epoch = scalars['train/loss'].data[0], iterations // cfg.train_cfg.max_epochs
    return dict(
        epochs=cfg.train_cfg.max_epochs,
        iterations=iterations,
        seconds=round(float(scalars['train/time'].data[0].sum()), 1),
        train_loss=[round(float(x.mean()), 4) for x in torch.tensor(loss).split(per_epoch)],
        curves={name: [round(float(x), 7) for x in data[0]] for name, data in known.items()},
    )


def restore(study: Study, net: Net) -> SupernetClassifier:
    """A trained net, ready to evaluate."""
    return apis.load_supernet(study.config(net), study.weights(net))


def measure(study: Study, net: Net, images: tuple[Tensor, Tensor]) -> dict:
    """Top-1, loss and similarity of the subnets on a set; of a net alone only its own.

    With experts, also top-1 by those of other groups.
    """
    model = restore(study, net)
    chosen = study.subnets if net.subnet is None else (study.subnets[net.subnet],)
    predicted = [predict(model, subnet, images[0]) for subnet in chosen]
    found = [scores(logits, images[1]) for logits, _ in predicted]
    table = None
    if net.subnet is None:
        table = feature_similarity([features for _, features in predicted]).tolist()
    return dict(
        top1=[round(s['top1'], 3) for s in found],
        loss=[round(s['loss'], 5) for s in found],
        similarity=table and [[round(cosine, 5) for cosine in row] for row in table],
        wrong_experts=wrong_experts(model, chosen, images),
    )


def wrong_experts(
    model: SupernetClassifier, subnets: Sequence[Subnet], images: tuple[Tensor, Tensor]
) -> list[float] | None:
    """Top-1 of each subnet with another group's experts, mean over the shifts of all gates."""
    if model.router is None or model.router.num_experts == 1:
        return None
    shifts = range(1, model.router.num_experts)
    found = [
        [scores(predict(model, subnet, images[0], k)[0], images[1])['top1'] for k in shifts]
        for subnet in subnets
    ]
    return [round(mean(top1), 3) for top1 in found]


def change(study: Study, net: Net) -> list[float] | None:
    """|dW|/|W| of each subnet against the net it starts from; None from scratch."""
    if net.start is None:
        return None
    before, after = restore(study, net.start), restore(study, net)
    chosen = study.subnets if net.subnet is None else (study.subnets[net.subnet],)
    return [
        round(relative_change(*(weights_in_use(model, subnet) for model in (before, after))), 5)
        for subnet in chosen
    ]


def make(study: Study, net: Net, heldout: tuple[Tensor, Tensor]) -> dict:
    """Train and measure a net, and write its record; the test set is left for later."""
    course = train(study, net)
    method = METHODS[net.method]
    shift = course['curves'].get('gate_shift')
    record = dict(
        kind='net',
        net=net.name,
        family=net.family,
        part=method.part,
        **asdict(net),
        init_seed=net.init_seed,
        start=net.start and net.start.name,
        config=f'configs/{method.config}.py',
        digest=digest(study, net),
        revision=records.revision(),
        numerics=_numerics(),
        weights=_digest_of(study.weights(net)),
        **course,
        delta_w=change(study, net),
        gate_shift=shift and shift[-1],
        heldout=measure(study, net, heldout),
        test=None,
    )
    study.records.write(record)
    drop_checkpoints(study, net)
    return record


def make_again(study: Study, net: Net, heldout: tuple[Tensor, Tensor]) -> dict:
    """Train a net whose record is there and whose weights are not; returns the record.

    Raises:
        UserError: If another net comes out: what starts from it would not belong to the records.
    """
    again = replace(study, work=study.work / 'again')
    train(again, net)
    record, found = study.records.read(net.name), measure(again, net, heldout)
    if is_same := all(found[key] == record['heldout'][key] for key in ('top1', 'loss')):
        again.weights(net).replace(study.weights(net))
    shutil.rmtree(again.folder(net))
    if not is_same:
        raise UserError(
            f'{study.weights(net)} is not there, or not that of its record. Trained again, here '
            f'by {_numerics()}, {net.name} has top-1 {found["top1"]} where its record, by '
            f'{record.get("numerics", "others")}, has {record["heldout"]["top1"]}: they round in '
            'another way. Copy the file there if it is kept elsewhere; or take --seeds that have '
            'no records; or another --out together with another --work-dir'
        )
    return record


def drop_checkpoints(study: Study, net: Net) -> None:
    """Remove what a net was trained on from; once it has a record, only its weights are of use."""
    folder = study.folder(net)
    for path in [*folder.glob('*.pth'), folder / 'last_checkpoint']:
        path.unlink(missing_ok=True)


def lacks_weights(study: Study, net: Net) -> bool:
    """Whether a net that has a record has no weights, or others than its record's."""
    path, known = study.weights(net), study.records.read(net.name).get('weights')
    return not path.is_file() or known not in (None, _digest_of(path))


def _digest_of(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()[:16]


def _numerics() -> str:
    """What decides how sums are rounded."""
    return f'torch {torch.__version__} on {torch.backends.cpu.get_cpu_capability()}'
