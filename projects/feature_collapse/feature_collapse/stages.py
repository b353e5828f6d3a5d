"""The steps of the experiment as tasks: training, similarity between nets, the test at the end."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from tas_lora import cli
from tas_lora.analysis.features import feature_similarity

from . import training
from .measure import predict
from .plan import Net
from .progress import Task, work_off
from .settings import Study

Images = tuple[Tensor, Tensor]


def make_all(study: Study, nets: Sequence[Net], heldout: Images) -> None:
    """Train and measure all nets that have no record, and again those whose weights they need.

    Raises:
        UserError: If a record is of another config, or a net to start from has a record, no
            weights, and others than its record's when trained again.
    """
    for net in nets:
        record = study.records.read(net.name, digest=training.digest(study, net))
        if record and not training.lacks_weights(study, net):
            training.drop_checkpoints(study, net)  # if it was killed right after its record
    starts = {net.start for net in nets if not _has_record(study, net)}
    _finish(study, [_training(study, net, heldout, net in starts) for net in nets])


def test_all(study: Study, nets: Sequence[Net], test: Images) -> None:
    """Measure all nets that have a record on the test set."""
    _finish(study, [_testing(study, net, test) for net in nets])


def compare_families(study: Study, nets: Sequence[Net], images: Images, part: str) -> None:
    """Similarity between the nets that were trained alone, by one method from one seed.

    Args:
        study: The study.
        nets: The nets; those that differ from one in the subnet alone are compared with it.
        images: What features are taken of.
        part: Of which set that is, 'heldout' or 'test'.
    """
    alone = {(net.family, net.seed): net for net in nets if net.subnet is not None}
    tasks = [_comparison(study, net, images, part) for net in alone.values()]
    _finish(study, tasks, 'similarity')


def _finish(study: Study, tasks: Sequence[Task], kind: str = 'net') -> None:
    """Do all tasks, and gather the records that they leave."""
    work_off(tasks, _say)
    study.records.gather(kind, [task.name for task in tasks])


def _has_record(study: Study, net: Net) -> bool:
    return study.records.read(net.name) is not None


def _training(study: Study, net: Net, heldout: Images, is_start: bool) -> Task:
    """Training of a net; once more if others start from it and only its record is there."""

    def is_done() -> bool:
        return _has_record(study, net) and not (is_start and training.lacks_weights(study, net))

    def start_is_there() -> bool:
        start = net.start
        return start is None or (
            _has_record(study, start) and not training.lacks_weights(study, start)
        )

    def do() -> str:
        make = training.make_again if _has_record(study, net) else training.make
        return _shown(make(study, net, heldout)['heldout'])

    return Task(
        net.name,
        study.config(net).train_cfg.max_epochs,
        study.folder(net) / 'lock',
        is_done,
        start_is_there,
        do,
    )


def _testing(study: Study, net: Net, test: Images) -> Task:
    def record() -> dict:
        return study.records.read(net.name)

    def do() -> str:
        found = training.measure(study, net, test)
        study.records.write(record() | dict(test=found))
        return 'test ' + _shown(found)

    return Task(
        net.name,
        len(found) if (found := record()['heldout']['top1']) else 0,
        study.folder(net) / 'lock',
        lambda: record()['test'] is not None,
        lambda: True,
        do,
    )


def _comparison(study: Study, one: Net, images: Images, part: str) -> Task:
    name = f'similarity_{part}_{one.family}_seed{one.seed}'
    known = _digests_of(study, one)
    family = [net for net in known if not training.lacks_weights(study, net)]
    digest = '-'.join(known[net] for net in family)

    def is_done() -> bool:
        kept = study.records.read(name, 'similarity')
        before = set(kept['digest'].split('-') if kept else ())
        if before - set(_digests_of(study, one).values()):  # now: others may have added nets
            study.records.read(name, 'similarity', digest)  # refused, as it is of another config
        return not before < {known[net] for net in family}  # of fewer nets: it is made anew

    def do() -> str:
        features = [
            predict(training.restore(study, net), study.subnets[net.subnet], images[0])[1]
            for net in family
        ]
        table = [[round(cosine, 5) for cosine in row] for row in feature_similarity(features)]
        record = dict(kind='similarity', net=name, family=one.family, method=one.method, part=part)
        study.records.write(record | dict(seed=one.seed, digest=digest, similarity=table))
        return f'{len(family)} nets'

    return Task(
        name,
        len(family),
        study.work / f'{name}.lock',
        is_done,
        lambda: True,
        do,
    )


def _digests_of(study: Study, one: Net) -> dict[Net, str]:
    """The nets that differ from one in the subnet alone and have a record, with its digest."""
    nets = [replace(one, subnet=subnet) for subnet in range(len(study.subnets))]
    found = {net: study.records.read(net.name) for net in nets}
    return {net: record['digest'] for net, record in found.items() if record}


def _shown(measured: dict) -> str:
    return 'top-1 ' + ' '.join(f'{value:.2f}' for value in measured['top1'])


def _say(line: str) -> None:
    cli.say(line, flush=True)
