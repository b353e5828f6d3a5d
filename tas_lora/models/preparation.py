"""A test pipeline of MMPretrain, told in the terms of ``architecture.json``."""

from collections.abc import Mapping, Sequence

import numpy as np
from mmpretrain.models import ClsDataPreprocessor
from mmpretrain.registry import TRANSFORMS

from .plain_vit import INTERPOLATIONS

_STORED_AS_RGB = ('CIFAR10', 'CIFAR100')  # MMPretrain datasets that hold RGB images in memory
_LIBRARIES = ('mmcv', 'mmpretrain')
_OPENCV = ('nearest', 'bilinear', 'bicubic')  # the methods of OpenCV that torch also has
_SHAPES = ('short', 'short crop', 'squash', 'squash crop', 'fit pad')


def describe(dataset: Mapping, data_preprocessor, side: int) -> dict:
    """How a network's images are prepared, as ``load_plain_vit`` gives it.

    Args:
        dataset: Config of a dataset, the innermost one if they are nested; may be empty.
        data_preprocessor: The model's.
        side: Side of the network's images.

    Returns:
        The content of ``preprocess``. Steps that it has no terms for are named in its
        ``unknown_steps``; it then says nothing of resizing.
    """
    reader = _PipelineReader(stored_order(dataset), side)
    for step in dataset.get('pipeline') or ():
        reader.read(step)
    reader.normalise_by(data_preprocessor)
    return reader.description()


def stored_order(dataset: Mapping) -> str | None:
    """Channel order of a dataset's images, 'RGB' or 'BGR'; None if its config does not tell.

    MMCV's ``LoadImageFromFile`` gives BGR with every backend.
    """
    if bare_name(dataset) in _STORED_AS_RGB:
        return 'RGB'
    loads = 'LoadImageFromFile' in map(bare_name, dataset.get('pipeline') or ())
    return 'BGR' if loads else None


def bare_name(config: object) -> str:
    """Type of a config, given by name or as a class, without its scope."""
    kind = config.get('type') if isinstance(config, Mapping) else type(config)
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', repr(kind))
    return name.rsplit('.', 1)[-1]


def loads_grey(step: Mapping) -> bool:
    """Whether a step of a pipeline reads image files as grey."""
    return bare_name(step) == 'LoadImageFromFile' and step.get('color_type') == 'grayscale'


class _PipelineReader:
    """Reads a pipeline step by step; images are always (pixels 0..255 - mean) / std."""

    def __init__(self, order: str | None, side: int):
        self.order, self.side, self.flips = order, side, False
        self.mean, self.std = np.zeros(1), np.ones(1)
        self.is_normalised = self.is_grey = False
        self.shape, self.method = [], {}
        self.unknown = []

    def read(self, step: Mapping) -> None:
        """Take in the next step, or add it to ``unknown``."""
        name = _known_name(step)
        readers = dict(
            LoadImageFromFile=self._load,
            PackInputs=lambda step: True,
            Resize=self._resize,
            ResizeEdge=self._resize_edge,
            CenterCrop=lambda step: self._crop(step.get('crop_size')),
            Pad=self._pad,
            Normalize=self._normalise,
            NumpyToPIL=lambda step: self._flip(step.get('to_rgb', False)),
            PILToNumpy=lambda step: self._flip(step.get('to_bgr', False)),
        )
        readers |= {
            'torchvision/Resize': self._torchvision_resize,
            'torchvision/CenterCrop': lambda step: self._crop(step.get('size')),
            'torchvision/PILToTensor': lambda step: True,
            'torchvision/ToTensor': lambda step: self._subtract(0, 255),
            'torchvision/Normalize': lambda step: self._subtract(step['mean'], step['std']),
        }
        if name not in readers or not readers[name](step):
            settings = step.items() if isinstance(step, Mapping) else ()
            shown = ', '.join(f'{key}={value!r}' for key, value in settings if key != 'type')
            self.unknown.append(f'{name}({shown})'[:100])

    def normalise_by(self, data_preprocessor) -> None:
        """Take in what the model does to a batch."""
        if not isinstance(data_preprocessor, ClsDataPreprocessor):
            self.unknown.append(type(data_preprocessor).__name__)
            return
        self._flip(data_preprocessor.to_rgb)
        if getattr(data_preprocessor, 'mean', None) is not None:
            values = (getattr(data_preprocessor, name).flatten() for name in ('mean', 'std'))
            self._subtract(*(value.tolist() for value in values))

    def description(self) -> dict:
        """What was read."""
        shape = ' '.join(kind for kind, _ in self.shape)
        if self.shape and shape not in _SHAPES and not self.unknown:
            self.unknown = [f'the steps {shape} in this order']
        mean, std = np.broadcast_arrays(self.mean, self.std)
        values = (mean.tolist(), std.tolist()) if self.is_normalised else (None, None)
        found = dict(mean=values[0], std=values[1], channel_order=self._final_order())
        if self.is_grey:
            found['color'] = 'grey'
        if self.unknown:
            return found | dict(unknown_steps=self.unknown)
        return found | self._resizing() | (self.method if self.shape else {})

    def _final_order(self) -> str:
        """Order of the network's input; if unknown, trust a preprocessor that flips to RGB."""
        if self.order is None:
            return 'RGB' if self.flips else 'as loaded'
        return 'RGB' if self.flips == (self.order == 'BGR') else 'BGR'

    def _resizing(self) -> dict:
        if not self.shape:
            return {}
        (kind, size), *after = self.shape
        if kind == 'fit':
            return dict(pad_value=after[0][1])
        if kind == 'short':
            return dict(crop_ratio=self.side / size)
        return dict(crop_ratio=self.side / size, squash=True) if after else dict(crop_ratio=None)

    def _load(self, step: Mapping) -> bool:
        self.is_grey = loads_grey(step)
        return step.get('color_type', 'color') in ('color', 'grayscale')

    def _resize(self, step: Mapping) -> bool:
        size = _square(step.get('scale'))
        kind = 'fit' if step.get('keep_ratio') else 'squash'
        return self._resize_by(step, kind, None if step.get('scale_factor') else size)

    def _resize_edge(self, step: Mapping) -> bool:
        is_short = step.get('edge', 'short') == 'short'
        return self._resize_by(step, 'short', step.get('scale') if is_short else None)

    def _torchvision_resize(self, step: Mapping) -> bool:
        """Of a Pillow image; a number is the length of the short edge."""
        size, method = step.get('size'), step.get('interpolation', 'bilinear')
        is_pair = isinstance(size, Sequence) and len(size) == 2
        size = size[0] if isinstance(size, Sequence) and len(size) == 1 else size
        method = str(getattr(method, 'value', method)).lower()
        step = dict(backend='pillow', interpolation=method, max_size=step.get('max_size'))
        size = None if step['max_size'] else _square(size)
        return self._resize_by(step, 'squash' if is_pair else 'short', size)

    def _resize_by(self, step: Mapping, kind: str, size: int | None) -> bool:
        backend = step.get('backend', 'cv2')
        method = step.get('interpolation', 'bilinear')
        known = _OPENCV if backend == 'cv2' else INTERPOLATIONS
        if type(size) is not int or method not in known:
            return False
        self.shape.append((kind, size))
        self.method = dict(interpolation=method)
        if backend == 'cv2':
            self.method['backend'] = 'cv2'
        return self.side <= size <= 10 * self.side and (kind != 'fit' or size == self.side)

    def _crop(self, size: object) -> bool:
        self.shape.append(('crop', size))
        return _square(size) == self.side

    def _pad(self, step: Mapping) -> bool:
        value = step.get('pad_val', 0)
        value = value.get('img', 0) if isinstance(value, Mapping) else value
        self.shape.append(('pad', value))
        odd = self.is_normalised or step.get('padding_mode', 'constant') != 'constant'
        fits = type(value) is int and 0 <= value <= 255
        return fits and not odd and _square(step.get('size')) == self.side

    def _normalise(self, step: Mapping) -> bool:
        self._flip(step.get('to_rgb', True))
        return self._subtract(step['mean'], step['std'])

    def _subtract(self, mean, std) -> bool:
        """Take in that ``mean`` is subtracted from the present values, and ``std`` divides."""
        self.mean = self.mean + np.asarray(mean, float) * self.std
        self.std = self.std * np.asarray(std, float)
        self.is_normalised = True
        return True

    def _flip(self, reverses: bool) -> bool:
        if reverses:
            self.flips = not self.flips
            self.mean, self.std = self.mean[::-1], self.std[::-1]
        return True


def _known_name(step: object) -> str:
    """Bare name of one of MMCV's or MMPretrain's transforms; the full name of any other."""
    kind = step.get('type') if isinstance(step, Mapping) else type(step)
    if isinstance(kind, str) and kind.startswith('torchvision/'):
        return kind
    found = TRANSFORMS.get(kind) if isinstance(kind, str) else kind
    module = getattr(found, '__module__', None) or ''
    is_theirs = module.split('.')[0] in _LIBRARIES
    return bare_name(dict(type=found)) if is_theirs else f'{module}.{bare_name(step)}'.lstrip('.')


def _square(size: object) -> int | None:
    """Side of a square that is given by its side or by two equal ones; None for others."""
    sides = {*size} if isinstance(size, Sequence) and len(size) == 2 else {size}
    side = sides.pop() if len(sides) == 1 else None
    return side if type(side) is int else None
