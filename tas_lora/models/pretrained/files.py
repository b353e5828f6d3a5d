"""Files of a supernet that was made from a pretrained network: its config and its weights."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from pprint import pformat

import torch

from ...atomic_files import write_together
from ..classifiers import SupernetClassifier

HEADER = """# The supernet whose largest subnet is {source!r}.
# Written by tools/supernet_from.py, along with its weights. A config that begins with it has
#     _base_ = ['FOLDER/supernet.py', ...]
#     load_from = 'FOLDER/supernet.pth'

model = {model}
"""


def write_supernet(folder: str | Path, source: str, model: SupernetClassifier, config: Mapping):
    """Write ``supernet.py`` and ``supernet.pth``, one not without the other.

    Args:
        folder: Created if missing.
        source: Where the network is from, for the record.
        model: The supernet.
        config: Its config, as :func:`~.build.convert` gives it.
    """
    folder, content = Path(folder), BytesIO()
    torch.save(dict(meta=dict(source=source), state_dict=model.state_dict()), content)
    model_text = pformat(config, width=96, compact=True, sort_dicts=False)
    folder.mkdir(parents=True, exist_ok=True)
    write_together(
        {
            folder / 'supernet.pth': content.getvalue(),
            folder / 'supernet.py': HEADER.format(source=source, model=model_text),
        }
    )
