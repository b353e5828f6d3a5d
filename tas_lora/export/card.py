"""The model card: what an exported network is, how it was found, and what was measured."""

import json
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..errors import blame
from .data import innermost
from .formats import ROOT, Format

_MEASURED = ('latency', 'memory')  # which a search records besides the metrics of evaluators


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
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        json=json.dumps, dataset=_dataset, file_name=lambda path: Path(path).name
    )
    with blame('the search that found the subnet cannot be described'):
        return environment.get_template('card.md.jinja').render(
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


def _dataset(loader: Mapping | None) -> str:
    """The innermost dataset and its split, and the part of it that a held-out split leaves."""
    dataset = innermost(loader)
    if not dataset:
        return 'not recorded'
    outer = loader['dataset']
    while 'part' not in outer and isinstance(outer.get('dataset'), Mapping):
        outer = outer['dataset']
    split = [f'split {dataset["split"]}'] if dataset.get('split') else []
    part = [f'part {outer["part"]} of {outer.get("type")}'] if outer.get('part') else []
    return ', '.join([str(dataset.get('type')), *split, *part])


def _metrics(record: Mapping) -> dict[str, float]:
    """Those of the search: as 'accuracy/top1', the score, and what was measured."""
    return {
        name: value
        for name, value in record.items()
        if isinstance(value, (int, float))
        and ('/' in name or name in (record.get('score'), *_MEASURED))
    }
