"""iNaturalist 2019."""

from pathlib import Path

from mmengine.fileio import join_path
from mmpretrain.datasets import BaseDataset

from ..checks import one_of
from ..errors import UserError
from ..provenance import read_json
from ..registry import DATASETS


@DATASETS.register_module()
class INaturalist2019(BaseDataset):
    """The species of iNaturalist 2019, from annotations in COCO format.

    Args:
        data_root: Folder with ``train2019.json``, ``val2019.json`` and the images they name.
        split: 'train' or 'val'; the test labels are not public.
        **kwargs: As in MMPretrain's ``BaseDataset``: ``pipeline``, ...

    Raises:
        UserError: If ``split`` does not exist, or the annotations are missing or malformed.
    """

    def __init__(self, data_root: str, split: str = 'train', **kwargs):
        one_of(split, 'split', ('train', 'val'))
        if not isinstance(data_root, (str, Path)):
            raise UserError(f'must be a folder, got {data_root!r}', 'data_root')
        default = dict(test_mode=split == 'val')
        super().__init__(f'{split}2019.json', data_root=str(data_root), **(default | kwargs))

    def load_data_list(self) -> list[dict]:
        """Path and label of every annotated image.

        The label is the index of the category among ``categories`` sorted by id, or the id itself
        if the file lists none. The official ids are 0 to 1009.
        """
        advice = '; unpack the annotations of iNaturalist 2019 into data_root'
        content = read_json(self.ann_file, advice=advice, most=None)
        try:
            files = {image['id']: image['file_name'] for image in content['images']}
            found = [(files[a['image_id']], a['category_id']) for a in content['annotations']]
            names = {c['id']: c['name'] for c in content.get('categories', ())}
            label = {identity: i for i, identity in enumerate(sorted(names))}
            labels = [label[identity] if label else identity for _, identity in found]
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(
                f'{self.ann_file} is not in COCO format ({type(error).__name__}: {error}); '
                'it needs images with id and file_name, annotations with image_id and category_id'
            ) from error
        if names:
            self._metainfo.setdefault('classes', tuple(names[identity] for identity in label))
        return [
            dict(img_path=join_path(self.img_prefix, file), gt_label=label)
            for (file, _), label in zip(found, labels, strict=True)
        ]
