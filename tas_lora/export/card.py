"""The model card: what an exported network is, how it was found, and what was measured."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from ..errors import blame
from .data import innermost

_MEASURED = ('latency', 'memory')  # beside the metrics of the evaluators
_UNKNOWN = 'not recorded'


def model_card(description: Mapping, record: Mapping, data: Mapping, licence: str | None) -> str:
    """The card in Markdown, with the head that model hubs read.

    Args:
        description: Content of ``architecture.json``.
        record: Content of the file the subnet is from, as the search writes it, or less.
        data: ``train_dataloader``, ``test_dataloader`` of the supernet's config, as far as there.
        licence: Of the weights, as model hubs name it.

    Raises:
        UserError: If ``record`` has the fields of a search's result with other content.
    """
    with blame('the search that found the subnet cannot be described'):
        parts = (
            _head(licence),
            _network(description),
            _section('Data', _data(record, data)),
            _section('Search', _search(record)),
            _section('Limits', _limits(record)),
            _section('Metrics', _metrics(record)),
            _section('Licence', iter([licence or 'Not stated.'])),
        )
        return '\n\n'.join(parts) + '\n'


def _head(licence: str | None) -> str:
    lines = [f'license: {licence}'] if licence else []
    lines += ['pipeline_tag: image-classification', 'tags:', '- vision-transformer', '- tas-lora']
    return '\n'.join(['---', *lines, '---'])


def _network(description: Mapping) -> str:
    network, preprocess = description['network'], description['preprocess']
    side, channels = network['img_size'], network['in_channels']
    rows = {
        'width': network['embed_dim'],
        'blocks': len(network['num_heads']),
        'heads': network['num_heads'],
        'MLP widths': network['hidden_dims'],
        'parameters': f'{description["params"]:,}',
        "FLOPs (AutoFormer's convention)": f'{description["flops"]:,.0f}',
        'images': f'{channels} x {side} x {side}, channels: {preprocess["channel_order"]}',
        'mean and deviation (0..255)': f'{preprocess["mean"]}, {preprocess["std"]}',
        'classes': network['num_classes'],
        'SHA-256 of the weights': description['weights_sha256'],
    }
    table = ['| | |', '| --- | --- |', *(f'| {key} | {value} |' for key, value in rows.items())]
    return '\n'.join(
        ['# A vision transformer found by TAS-LoRA', '', *table, '']
        + ['A fixed network: cut out of a supernet, experts merged into its weights.']
    )


def _section(title: str, lines: Iterator[str]) -> str:
    return f'## {title}\n\n' + '\n'.join(lines)


def _data(record: Mapping, data: Mapping) -> Iterator[str]:
    yield f'- trained on: {_dataset(data.get("train_dataloader"))}'
    searched = record.get('search', {}).get('config', {}).get('val_dataloader')
    yield f'- searched on: {_dataset(searched)}; images: {record.get("images", _UNKNOWN)}'
    yield f'- to be tested on: {_dataset(data.get("test_dataloader"))}'


def _dataset(loader: Mapping | None) -> str:
    """The innermost dataset and its split, and the part of it that a held-out split leaves."""
    dataset = innermost(loader)
    if not dataset:
        return _UNKNOWN
    outer = loader['dataset']
    while 'part' not in outer and isinstance(outer.get('dataset'), Mapping):
        outer = outer['dataset']
    split = [f'split {dataset["split"]}'] if dataset.get('split') else []
    part = [f'part {outer["part"]} of {outer.get("type")}'] if outer.get('part') else []
    return ', '.join([str(dataset.get('type')), *split, *part])


def _search(record: Mapping) -> Iterator[str]:
    search = record.get('search')
    if search is None:
        yield 'Not recorded: the subnet was given by its sizes alone.'
        return
    settings = search['config']['val_cfg']
    evolution = settings.get('evolution') or {}
    yield f'- candidates: {record["candidates"]}, judged by {record["score"]} ({record["rule"]})'
    yield f'- goals: {", ".join(record.get("goals") or ()) or "that score alone"}'
    yield f'- space: {settings["space"]}'
    yield f'- settings: {evolution}'
    checkpoint = Path(search['checkpoint'] or _UNKNOWN).name
    yield f'- weights: {checkpoint}, SHA-256 {search["checkpoint_sha256"]}'
    yield '- versions: ' + ', '.join(f'{name} {it}' for name, it in search['versions'].items())


def _limits(record: Mapping) -> Iterator[str]:
    search = record.get('search', {}).get('config', {}).get('val_cfg', {})
    for name, (low, high) in (search.get('constraints') or {}).items():
        ends = [f'from {low:,}'] if low is not None else []
        ends += [f'up to {high:,}'] if high is not None else []
        yield f'- {name}: {" ".join(ends) or "any"}'
    yield '- images of one size; others have to be resized first'


def _metrics(record: Mapping) -> Iterator[str]:
    found = _numbers(record, record.get('score'))
    for name, value in found.items():
        yield f'- {name}: {value:g}, on the images of the search'
    tested = record.get('test') or {}
    for subnet, metrics in tested.items():
        for name, value in metrics.items():
            yield f'- {name} of {subnet}: {value:g}, on the test set'
    if not found and not tested:
        yield 'None recorded.'


def _numbers(record: Mapping, score: str | None) -> dict[str, float]:
    """Metrics, as 'accuracy/top1', the score, and what was measured."""
    return {
        name: value
        for name, value in record.items()
        if isinstance(value, (int, float)) and ('/' in name or name in (score, *_MEASURED))
    }
