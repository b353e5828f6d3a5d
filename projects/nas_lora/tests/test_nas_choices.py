"""The table and the picture of the operations that were chosen."""

import pytest
import torch
from matplotlib.image import imread
from nas_lora.cells.choices import choices, choices_table, draw_choices
from nas_lora.cells.fold import fold
from nas_lora.vits.adapt import adapt
from tiny_encoder import LINEAR, tiny_encoder, wake

from tas_lora.errors import UserError

NAMES = [f'layers.{i}.attn.qkv.{part}' for i in range(4) for part in 'qkv']


def adapted(**options):
    torch.manual_seed(0)
    encoder = tiny_encoder()
    adapt(encoder, dict(type='nas_lora.NASLoRALinear', **options))
    wake(encoder)
    return encoder


def test_choices_are_the_softmax_of_every_cell():
    encoder = adapted(operations=LINEAR)
    found = choices(encoder)
    assert list(found) == NAMES
    for name, chances in found.items():
        layer, part = name.rsplit('.', 1)
        alpha = encoder.get_submodule(layer).branches[part].cell.alpha.detach()
        expected = alpha.exp() / alpha.exp().sum()
        assert list(chances) == list(LINEAR)
        assert list(chances.values()) == pytest.approx(expected.tolist(), rel=1e-5)


def test_the_table_has_a_row_for_each_cell_and_its_most_likely_operation():
    encoder = adapted(operations=['sep_conv_3x3', 'none'])
    head, rule, *rows = choices_table(encoder).splitlines()
    assert head == '| layer | none | sep_conv_3x3 | chosen |'
    assert rule == '| --- | ---: | ---: | --- |'
    for row, (name, chances) in zip(rows, choices(encoder).items(), strict=True):
        none, sep = chances['none'], chances['sep_conv_3x3']
        chosen = 'none' if none > sep else 'sep_conv_3x3'
        assert row == f'| {name} | {none:.3f} | {sep:.3f} | {chosen} |'


@pytest.mark.parametrize('choice', ['searched', 'random'])
def test_the_picture_is_drawn(tmp_path, choice):
    path = tmp_path / 'choices.png'
    draw_choices(adapted(choice=choice), path)
    pixels = imread(path)
    assert min(pixels.shape[:2]) > 300
    assert pixels[..., :3].std() > 0.1


def test_what_is_refused(tmp_path):
    encoder = adapted(operations=LINEAR)
    with pytest.raises(UserError, match='choices.xyz cannot be written: ValueError'):
        draw_choices(encoder, tmp_path / 'choices.xyz')
    fold(encoder)
    with pytest.raises(UserError, match=r'layers\.0\.attn\.qkv\.q is folded and has no operations'):
        choices(encoder)
    with pytest.raises(UserError, match='the ViTSAM has no NASLoRALinear'):
        choices(tiny_encoder())
