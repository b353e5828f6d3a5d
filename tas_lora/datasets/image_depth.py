"""Images of more than 8 bits per channel, which would lose their lower bits."""

import re
from contextlib import suppress
from typing import BinaryIO

from PIL.TiffImagePlugin import BITSPERSAMPLE, ImageFileDirectory_v2

from ..errors import UserError


def refuse_deep(path: str) -> None:
    """Refuse an image file with more than 8 bits per channel, from its header.

    OpenCV divides such values by 256: 12-bit values in a 16-bit file become 16 grey levels. Pillow
    clips some and divides others.

    Args:
        path: The file. One that cannot be opened is left to the decoder.

    Raises:
        UserError: Naming the file.
    """
    bits = 8
    with suppress(Exception), open(path, 'rb') as file:  # damage is reported by the decoder
        bits = _bits(file)
    if bits > 8:
        raise UserError(f'image {path} has more than 8 bits per channel; save it with 8')


def _bits(file: BinaryIO) -> int:
    """Bits per channel of a PNG, TIFF or PNM file; other formats of images have 8."""
    start = file.read(25)
    if start.startswith(b'\x89PNG\r\n\x1a\n'):
        return start[24]
    if start[:4] in (b'II*\0', b'MM\0*'):
        tags = ImageFileDirectory_v2(start[:8])
        file.seek(tags.next)
        tags.load(file)
        return max(tags.get(BITSPERSAMPLE, (1,)))
    if start[:2] in (b'Pf', b'PF'):  # floating point
        return 32
    if re.match(rb'P[2356]\s', start):  # kind, width, height and highest value
        return int(re.sub(rb'#.*', b'', start + file.read(2000)).split()[3]).bit_length()
    return 8
