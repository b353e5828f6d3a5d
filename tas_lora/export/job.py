"""One run of tools/export.py: a subnet cut out of a config's supernet, written and compared."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from mmengine.config import Config

from ..errors import UserError
from ..models import SupernetClassifier, export_subnet, load_supernet
from ..models.safe_load import read_checkpoint
from ..structures import SearchSpace, Subnet
from .card import model_card
from .data import class_names, innermost
from .examples import take_examples
from .formats import Format
from .onnx import OPSETS
from .parity import ParityCheck, held_for_export, write_formats
from .preprocess import compare
from .source import Source

DATA = ('train_dataloader', 'test_dataloader', 'test_evaluator', 'data_preprocessor')
DATA += ('custom_imports',)

Then = Callable[[SupernetClassifier, Source, list[ParityCheck]], object]


def export_from_config(
    cfg: Config,
    checkpoint: str,
    record: Mapping,
    out: str | Path,
    formats: Sequence[Format],
    *,
    opset: int = OPSETS[0],
    outside_space: bool = False,
    license: str | None = None,
    say: Callable[[str], object] = print,
    before: Callable[[], object] = lambda: None,
    then: Then = lambda model, source, checks: None,
) -> list[ParityCheck]:
    """Write a subnet of a supernet in several formats, and compare each with it.

    Args:
        cfg: Config of the supernet and its data.
        checkpoint: The supernet's weights.
        record: A subnet's fields, or a result of a search, which goes into the model card.
        out: Folder to write to; no other export may be under way there.
        formats: The first is written to the folder's root.
        opset: Of the ONNX file.
        outside_space: Accept a subnet that the config's space does not have.
        license: Of the weights, for the model card.
        say: Takes a line on how images are prepared.
        before: Called before the formats are written.
        then: Called when they are, before the folder is released.

    Raises:
        UserError: If the subnet does not fit, or the folder holds something else.
    """
    subnet = Subnet.coerce(record)
    model = load_supernet(cfg, checkpoint)
    with TemporaryDirectory() as folder:
        source = _read_source(cfg, checkpoint, model, subnet, folder, opset)
        if not outside_space:  # it would fit the supernet and its experts
            _check_space(cfg, subnet)
        card = partial(model_card, source.description, record, source.data, license)
        source = _compare_preparation(source, model, Path(folder, 'images'), say)
        card()  # refuses a damaged record before the formats are written
        with held_for_export(out):
            before()
            checks = write_formats(model, source, formats, out, card)
            then(model, source, checks)
    return checks


def _check_space(cfg: Config, subnet: Subnet) -> None:
    """Refuse a subnet outside the config's space: the supernet was not trained for it."""
    parts = {'train_cfg': cfg.get('train_cfg'), 'model.router': cfg.model.get('router')}
    parts['val_cfg'] = cfg.get('val_cfg')  # last: a search may cover less than was trained
    spaces = ((name, part['space']) for name, part in parts.items() if part and part.get('space'))
    name, choices = next(spaces, (None, None))
    found = next(_outside(SearchSpace.coerce(choices), subnet), None) if choices else None
    if found is not None:
        field, value, allowed = found
        raise UserError(
            f'the subnet is outside {name}.space: {field} is {value}, the space has {allowed}; '
            'choose another subnet, or add --outside-space'
        )


def _outside(space: SearchSpace, subnet: Subnet) -> Iterator[tuple[str, object, tuple]]:
    """Fields of a subnet that are not among a space's choices: name, value and choices."""
    for name in ('embed_dim', 'depth', 'patch_size'):
        value, allowed = getattr(subnet, name), getattr(space, name) or (None,)
        if value not in allowed:
            yield name, value, allowed
    for name in ('num_heads', 'mlp_ratio'):
        allowed = getattr(space, name)
        for i, value in enumerate(getattr(subnet, name)):
            if value not in allowed:
                yield f'{name}[{i}]', value, allowed


def _read_source(
    cfg: Config,
    checkpoint: str,
    model: SupernetClassifier,
    subnet: Subnet,
    folder: str,
    opset: int,
) -> Source:
    """Export into ``folder`` and add the config's settings of the data."""
    data = {name: cfg.to_dict().get(name) for name in DATA}
    data['test_dataloader'] = loader = data['test_dataloader'] or cfg.get('val_dataloader')
    own = cfg.model.get('data_preprocessor')
    data['data_preprocessor'] = own or data['data_preprocessor']
    classes = class_names(read_checkpoint(checkpoint), loader, model.num_classes)
    export_subnet(model, subnet, folder, classes, innermost(loader))
    return Source.read(folder, data=data, opset=opset)


def _compare_preparation(
    source: Source, model: SupernetClassifier, folder: Path, say: Callable[[str], object]
) -> Source:
    """Add test images, and say how the export's preparation of them compares with the test's."""
    folder.mkdir()
    try:
        loader = source.data['test_dataloader']
        examples = take_examples(model, loader, source.description, folder)
        source, line = compare(replace(source, examples=examples))
    except UserError as error:
        line = f'not compared with the test pipeline on real images: {error}'
    say(f'Preparation of images: {line}')
    return source
