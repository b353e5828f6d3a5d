"""The model card: what the exported network is, how it was found, and what was measured."""

import json
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from ..errors import blame, printable
from .data import innermost
from .formats import ROOT, Format

_MEASURED = ('latency', 'memory')  # recorded by a search in addition to metrics


def model_card(
    description: Mapping,
    record: Mapping,
    data: Mapping,
    licence: str | None,
    form: Format = ROOT,
    checks: Mapping[Format, str] | None = None,
) -> str:
    """Render the card in Markdown, with the YAML header that model hubs read.

    Args:
        description: Content of ``architecture.json``.
        record: Content of the subnet's file: a search's result, or a part of one.
        data: ``train_dataloader`` and ``test_dataloader`` of the supernet's config, if it has them.
        licence: Licence of the weights, as model hubs name it.
        form: The format that the card belongs to.
        checks: The formats written, each with the largest difference of logits.

    Raises:
        UserError: If ``record`` looks like a search's result, but its fields are malformed.
    """
    with blame('the search that found the subnet cannot be described'):
        text = _template().render(
            description=description,
            network=description['network'],
            preprocess=description['preprocess'],
            record=record,
            search=record.get('search'),
            metrics=_metrics(record),
            data=data,
            licence=licence,
            form=form,
            checks=checks or {},
        )
    return printable(text)


def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        json=json.dumps, dataset=_dataset, file_name=lambda path: Path(path).name
    )
    return environment.get_template('card.md.jinja')


def _dataset(loader: Mapping | None) -> str:
    """Name the innermost dataset, its split, and the part that a held-out split takes of it."""
    dataset = innermost(loader)
    if not dataset:
        return 'not recorded'
    outer = loader['dataset']
    while 'part' not in outer and isinstance(outer.get('dataset'), Mapping):
        outer = outer['dataset']
    split = [f'split {dataset["split"]}'] if dataset.get('split') else []
    part = [f'part {outer["part"]} of {_kind(outer)}'] if outer.get('part') else []
    return ', '.join([_kind(dataset), *split, *part])


def _kind(config: Mapping) -> str:
    kind = config.get('type')
    return getattr(kind, '__name__', str(kind))


def _metrics(record: Mapping) -> dict[str, float]:
    """Metrics of the search: those like 'accuracy/top1', the score, and measured costs."""
    return {
        name: value
        for name, value in record.items()
        if isinstance(value, (int, float))
        and ('/' in name or name in (record.get('score'), *_MEASURED))
    }
