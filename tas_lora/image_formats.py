"""The formats of image files that are meant, for all that opens images in this process.

Pillow looks at the content of a file, whatever its name, and knows some 40 formats. One of them,
EPS, is a program that it has Ghostscript run.
"""

from functools import cache

from PIL import Image, UnidentifiedImageError

# What MMPretrain's data sets look for, and the usual ones of the web. JPEG includes MPO.
FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')


@cache
def restrict_pillow() -> None:
    """Let Pillow open files of :data:`FORMATS` alone, from now on and in this process."""
    Image.init()  # loads all formats; afterwards Pillow adds none on its own
    Image.ID[:] = [name for name in Image.ID if name in FORMATS]


def open_image(file) -> Image.Image:
    """Open an image file of one of :data:`FORMATS`, as ``PIL.Image.open`` does."""
    restrict_pillow()
    try:
        return Image.open(file)
    except UnidentifiedImageError as error:
        raise UnidentifiedImageError(f'it is none of {", ".join(FORMATS)}') from error
