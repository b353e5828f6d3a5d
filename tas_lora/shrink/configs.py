"""The configs of the stages, from templates."""

from pathlib import Path
from pprint import pformat

from ..packaged import CONFIGS

RUNTIME = CONFIGS / '_base_' / 'default_runtime.py'


def schedules(way: str) -> list[Path]:
    """Packaged schedule of a way of training, and those it is based on."""
    bases = dict(all=(), experts=('all',), one_lora=('all',), both=('all', 'experts'))[way]
    return [CONFIGS / '_base_' / 'schedules' / f'distill_{name}.py' for name in (*bases, way)]


def config(name: str, **values) -> str:
    """The text of a config.

    Args:
        name: Of its template.
        **values: What the template names.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / 'templates'),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        block_start_string='<%',
        block_end_string='%>',
        variable_start_string='<<',
        variable_end_string='>>',
    )
    environment.filters['py'] = lambda value: pformat(
        value, width=90, compact=True, sort_dicts=False
    )
    return environment.get_template(f'{name}.py.jinja').render(**values)
