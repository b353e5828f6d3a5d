"""The model card, for people and for model hubs."""

import ast

import pytest
import yaml
from conftest import ROOT

from tas_lora import Subnet, UserError, export_subnet, load_supernet
from tas_lora.export import FORMATS, Source, model_card

CHOSEN = Subnet(24, (3, 2), (2.0, 4.0))


@pytest.fixture
def source(digits_config, tmp_path) -> Source:
    """A subnet with the data of its config."""
    folder = export_subnet(load_supernet(digits_config('moLE')), CHOSEN, tmp_path)
    return Source.read(folder, data=digits_config('moLE').to_dict())


HELD_OUT = dict(type='tas_lora.HeldOutSplit', part='heldout', dataset=dict(type='Fish', split='a'))
RECORD = {
    'subnet': CHOSEN.to_dict(),
    'score': 'cross_entropy',
    'rule': 'less',
    'images': 287,
    'candidates': 276,
    'goals': ['params'],
    'cross_entropy': 0.25,
    'accuracy/top1': 98.5,
    'latency': 1.5,
    'test': {'best': {'accuracy/top1': 97.5}},
    'search': {
        'checkpoint': '/home/someone/experts.pth',
        'checkpoint_sha256': 'abc123',
        'versions': {'torch': '2.10.0'},
        'config': {
            'val_dataloader': {'dataset': HELD_OUT},
            'val_cfg': {
                'space': {'depth': [2]},
                'constraints': {'params': [None, 40e3], 'flops': [1000, 2000]},
                'evolution': {'seed': 7},
            },
        },
    },
}


def test_the_card_tells_data_search_limits_metrics_and_licence(source):
    card = model_card(source.description, RECORD, source.data, 'mit')
    for line in (
        'license: "mit"',
        'pipeline_tag: "image-classification"',
        '- searched on: Fish, split a, part heldout of tas_lora.HeldOutSplit; images: 287',
        '- to be tested on: MNIST, split test',
        '- 276 subnets tried, for the lowest cross_entropy',
        '- goals: params',
        "- settings: {'seed': 7}",
        '- weights: experts.pth, SHA-256 abc123',
        '- limits: params up to 40,000; flops from 1,000 up to 2,000',
        '| images | 1 x 8 x 8, grey |',
        '| values | (pixels 0..255 - [78.0]) / [96.0] |',
        '- only images of 8 x 8 pixels; resize others first',
        '- cross_entropy: 0.25, on the images of the search',
        '- accuracy/top1: 98.5, on the images of the search',
        '- latency: 1.5, on the images of the search',
        '- accuracy/top1 of best: 97.5, on the test set',
    ):
        assert line in card.splitlines()
    assert f'| parameters | {source.description["params"]:,} |' in card
    assert 'someone' not in card


def test_a_record_of_a_search_that_was_damaged(source):
    for search in (3, {}, dict(RECORD['search'], config=[])):
        with pytest.raises(UserError, match='the search that found the subnet cannot be described'):
            model_card(source.description, RECORD | dict(search=search), {}, None)


def test_the_card_says_how_to_load_what_is_there(source):
    forms = {form.name: form for form in FORMATS}
    checks = {forms['safetensors']: '1.5e-07', forms['timm']: '2e-07', forms['onnx']: 'earlier'}
    text = model_card(source.description, {}, {}, None, forms['safetensors'], checks)
    assert "load_plain_vit('.')` | 1.5e-07 |" in text
    assert "sys.path.insert(0, './timm')" in text
    assert "onnxruntime.InferenceSession('./onnx/model.onnx')" in text
    assert "{'images': images})` | earlier |" in text
    assert 'torch.export' not in text
    assert 'license' not in text


def test_the_card_of_a_hub_is_of_its_folder_alone(source):
    forms = {form.name: form for form in FORMATS}
    checks = {forms['safetensors']: '1.5e-07', forms['huggingface']: '3e-07'}
    cards = [
        model_card(source.description, {}, {}, 'odd: "licence"', form, checks) for form in checks
    ]
    assert "from_pretrained('./huggingface', trust_remote_code=True)` | 3e-07 |" in cards[0]
    assert "from_pretrained('.', trust_remote_code=True)` | 3e-07 |" in cards[1]
    assert 'load_plain_vit' not in cards[1]
    heads = [yaml.safe_load(card.split('---\n')[1]) for card in cards]
    assert heads[0]['license'] == 'odd: "licence"'
    assert heads[1].pop('library_name') == 'transformers'
    assert heads[0] == heads[1]


def test_what_is_written_into_the_card_is_not_run(source):
    """Neither in the template, nor in the head: no field more than there is."""
    hostile = '{{ 7 * 7 }}{% raw %}\nlibrary_name: evil\n---'
    record = RECORD | dict(score=hostile, **{hostile: 0.5})
    card = model_card(source.description, record, source.data, hostile)
    head = yaml.safe_load(card.split('\n---\n')[0])
    assert head['license'] == hostile
    assert set(head) == {'license', 'pipeline_tag', 'tags'}
    assert f'for the lowest {hostile}' in card
    assert card.endswith(f'## Licence\n\n{hostile}\n')


def test_the_template_is_in_the_wheel():
    """And so is every file of the package that is no module."""
    setup = (ROOT / 'setup.py').read_text()
    data = dict(
        item
        for node in ast.walk(ast.parse(setup))
        if isinstance(node, ast.keyword) and node.arg == 'package_data'
        for item in ast.literal_eval(node.value).items()
    )
    package = ROOT / 'tas_lora'
    others = {p for p in package.rglob('*') if p.is_file() and p.suffix not in ('.py', '.pyc')}
    named = {
        path
        for name, patterns in data.items()
        for pattern in patterns
        for path in ROOT.joinpath(*name.split('.')).glob(pattern)
    }
    assert package / 'export' / 'card.md.jinja' in others
    assert others <= named


@pytest.mark.parametrize(
    ('channels', 'order', 'said'),
    [
        (1, 'as loaded', '1 x 8 x 8, grey'),
        (3, 'BGR', '3 x 8 x 8, channels in the order BGR'),
        (
            3,
            'as loaded',
            '3 x 8 x 8, channels in the order of the training files',
        ),
    ],
)
def test_the_card_names_the_channels(source, channels, order, said):
    network = source.description['network'] | dict(in_channels=channels)
    preprocess = dict(channel_order=order, mean=None, std=None, crop_ratio=0.875)
    changed = source.description | dict(network=network, preprocess=preprocess)
    text = model_card(changed, {}, {}, None)
    assert f'| images | {said}' in text
    assert '| values | pixels 0..255 |' in text
    assert 'central square crop, 0.875 of the short edge' in text


@pytest.mark.parametrize(
    ('preprocess', 'said'),
    [
        (dict(color='grey'), '3 x 8 x 8, grey, repeated in each channel |'),
        (
            dict(crop_ratio=0.8, squash=True),
            'to a square, ignoring the aspect ratio, then its cent',
        ),
        (dict(pad_value=7), '| resized | long edge to the side, the rest filled with 7'),
        (dict(crop_ratio=1.0, interpolation='bilinear', backend='cv2'), "(bilinear, OpenCV's)"),
        (dict(unknown_steps=['Mirror()', 'Blur()']), 'has no terms for: Mirror(), Blur()'),
    ],
)
def test_the_card_says_how_images_are_resized(source, preprocess, said):
    network = source.description['network'] | dict(in_channels=3)
    preprocess = dict(channel_order='RGB', mean=None, std=None) | preprocess
    changed = source.description | dict(network=network, preprocess=preprocess)
    assert said in model_card(changed, {}, {}, None)
