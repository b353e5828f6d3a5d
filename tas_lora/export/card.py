"""The model card: what an exported network is, how it was found, and what was measured."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..errors import blame
from .data import innermost
from .formats import ROOT, Format

_MEASURED = ('latency', 'memory')  # beside the metrics of the evaluators
_UNKNOWN = 'not recorded'


def model_card(
    description: Mapping,
    record: Mapping,
    data: Mapping,
    licence: str | None,
    form: Format = ROOT,
    checks: Mapping[Format, str] | None = None,
) -> str:
    """The card in Markdown, with the head that model hubs read.

    Args:
        description: Content of ``architecture.json``.
        record: Content of the file the subnet is from, as the search writes it, or less.
        data: ``train_dataloader``, ``test_dataloader`` of the supernet's config, as far as there.
        licence: Of the weights, as model hubs name it.
        form: The format that the card lies in.
        checks: Formats that are there, with the largest difference of logits that was seen.

    Raises:
        UserError: If ``record`` has the fields of a search's result with other content.
    """
    with blame('the search that found the subnet cannot be described'):
        parts = (
            _head(licence, form),
            _network(description),
            _section('How to load it', _loading(form, checks or {})),
            _section('Data', _data(record, data)),
            _section('Search', _search(record)),
            _section('Limits', _limits(description)),
            _section('Metrics', _metrics(record)),
            _section('Licence', iter([licence or 'Not stated.'])),
        )
        return '\n\n'.join(parts) + '\n'


def _head(licence: str | None, form: Format) -> str:
    """YAML; strings of JSON are such, too."""
    fields = [
        ('license', licence),
        ('library_name', form.packages[0] if form.card and form.packages else None),
        ('pipeline_tag', 'image-classification'),
        ('tags', ['vision-transformer', 'tas-lora']),
    ]
    lines = (f'{name}: {json.dumps(value)}' for name, value in fields if value)
    return '\n'.join(['---', *lines, '---'])


def _network(description: Mapping) -> str:
    network = description['network']
    rows = {
        'width': network['embed_dim'],
        'blocks': len(network['num_heads']),
        'heads': network['num_heads'],
        'MLP widths': network['hidden_dims'],
        'parameters': f'{description["params"]:,}',
        "FLOPs (AutoFormer's convention)": f'{description["flops"]:,.0f}',
        'images': _images(network, description['preprocess']),
        'resized': _resizing(description['preprocess']),
        'values': _values(description['preprocess']),
        'classes': network['num_classes'],
        'SHA-256 of the weights': description['weights_sha256'],
    }
    table = ['| | |', '| --- | --- |', *(f'| {key} | {value} |' for key, value in rows.items())]
    return '\n'.join(
        ['# A vision transformer found by TAS-LoRA', '', *table, '']
        + ['A fixed network: cut out of a supernet, experts merged into its weights.']
    )


def _images(network: Mapping, preprocess: Mapping) -> str:
    side, channels, order = network['img_size'], network['in_channels'], preprocess['channel_order']
    if channels == 1:
        kind = 'grey'
    elif order in ('RGB', 'BGR'):
        kind = f'channels in the order {order}'
    else:
        kind = 'channels in the order in which the files of the training data had them'
    return f'{channels} x {side} x {side}, {kind}'


def _resizing(preprocess: Mapping) -> str:
    if 'crop_ratio' not in preprocess:
        return _UNKNOWN
    ratio, by = preprocess['crop_ratio'], preprocess.get('interpolation', 'interpolation not known')
    if ratio is None:
        return f'to the square, whatever the shape ({by})'
    return f'the central square is cut out, {ratio:g} of the short edge ({by})'


def _values(preprocess: Mapping) -> str:
    """How pixels are normalised."""
    mean, std = preprocess['mean'], preprocess['std']
    shifted = 'pixels 0..255' if mean is None else f'(pixels 0..255 - {mean})'
    return shifted if std is None else f'{shifted} / {std}'


def _loading(form: Format, checks: Mapping[Format, str]) -> Iterator[str]:
    """A row for each format whose files are below the card."""
    yield '| format | Python | logits differ from the supernet by |'
    yield '| --- | --- | --- |'
    for each in checks if form.root else [form]:
        place = f'./{each.folder}' if form.root and each.folder else '.'
        seen = checks.get(each, _UNKNOWN)
        yield f'| {each.name} | `{each.load.replace("DIR", place)}` | {seen} |'
    yield '\nThe difference is the largest of 64 random images, both in float32.'


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
    best = dict(less='lowest', greater='highest').get(record['rule'], record['rule'])
    limits = (settings.get('constraints') or {}).items()
    yield f'- {record["candidates"]} subnets were tried; the {best} {record["score"]} was sought'
    yield f'- goals: {", ".join(record.get("goals") or ()) or "that score alone"}'
    yield f'- limits: {"; ".join(_range(name, *ends) for name, ends in limits) or "none"}'
    yield f'- space: {settings["space"]}'
    yield f'- settings: {settings.get("evolution") or {}}'
    checkpoint = Path(search['checkpoint'] or _UNKNOWN).name
    yield f'- weights: {checkpoint}, SHA-256 {search["checkpoint_sha256"]}'
    yield '- versions: ' + ', '.join(f'{name} {it}' for name, it in search['versions'].items())


def _range(name: str, low: float | None, high: float | None) -> str:
    """Whole numbers in full, whatever their type."""
    ends = [] if low is None else [f'from {low:,.15g}']
    ends += [] if high is None else [f'up to {high:,.15g}']
    return f'{name} {" ".join(ends) or "any"}'


def _limits(description: Mapping) -> Iterator[str]:
    side, classes = description['network']['img_size'], description['network']['num_classes']
    yield f'- images of {side} x {side} pixels alone; others have to be resized first'
    yield f'- any image is given one of the {classes} classes, whatever it shows'
    yield '- what it was not trained on, and other ways to resize or normalise, were not measured'


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
