"""SAM's encoder and decoder against transformers' and against what is published of them."""

import re
from pathlib import Path

import pytest
import torch
from mmpretrain.models import ViTSAM
from nas_lora.segmentation.mask_decoder import MaskDecoder
from nas_lora.segmentation.sam_keys import load_sam, sam_names
from safetensors.torch import save_file
from sam_files import TINY, images, meta_names, open_mmlab_names, tiny_sam, tiny_segmentor
from tool_calls import PROJECT

from tas_lora import UserError

CONFIGS = PROJECT / 'configs'


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope='module')
def sam():
    pytest.importorskip('transformers', reason='the reference is transformers.SamModel')
    return tiny_sam()


@pytest.fixture(scope='module')
def files(sam, tmp_path_factory) -> dict[str, Path]:
    """One SAM as three houses would write it."""
    folder, state = tmp_path_factory.mktemp('sam'), sam.state_dict()
    state = {name: value.clone() for name, value in state.items()}
    paths = dict(meta=folder / 'meta.pth', hf=folder / 'hf.safetensors', mm=folder / 'mm.pth')
    torch.save({new: state[name] for name, new in meta_names().items()}, paths['meta'])
    save_file(state, paths['hf'])
    backbone = {new: state[name] for name, new in open_mmlab_names().items()}
    torch.save(dict(state_dict=backbone, meta=dict()), paths['mm'])
    return paths


def test_encoder_of_sam_base_has_the_published_size():
    with torch.device('meta'):
        encoder = ViTSAM('base', img_size=1024, out_channels=256)
    assert count(encoder) == 89_670_912
    shapes = {name: tuple(value.shape) for name, value in encoder.named_parameters()}
    assert shapes['pos_embed'] == (1, 64, 64, 768)
    assert shapes['patch_embed.projection.weight'] == (768, 3, 16, 16)
    assert shapes['layers.0.attn.qkv.weight'] == (2304, 768)
    assert shapes['layers.0.attn.rel_pos_h'] == (27, 64)  # a window of 14
    assert shapes['layers.11.attn.rel_pos_w'] == (127, 64)  # all 64
    assert shapes['channel_reduction.2.weight'] == (256, 256, 3, 3)


def test_decoder_has_the_published_size_less_what_it_leaves_out():
    linear = lambda i, o: i * o + o  # noqa: E731
    mlp = 2 * linear(256, 256) + linear(256, 32)
    quality = 2 * linear(256, 256) + linear(256, 4)
    assert count(MaskDecoder()) == 4_058_340 - 3 * mlp - quality + 256 == 3_506_560


def test_decoder_of_transformers_has_the_size_that_ours_is_held_against():
    transformers = pytest.importorskip('transformers', reason='counts transformers.SamModel')
    with torch.device('meta'):
        sam = transformers.SamModel(transformers.SamConfig())
    assert count(sam.mask_decoder) == 4_058_340
    assert count(sam.vision_encoder) == 89_670_912


def test_tiny_sam_has_the_size_that_its_config_says():
    model = tiny_segmentor()
    assert (count(model.encoder), count(model.decoder)) == (163_136, 39_984)
    assert '203,120' in (CONFIGS / '_base_/sam_tiny.py').read_text()


def reference_logits(sam, pixels: torch.Tensor) -> torch.Tensor:
    """First mask of transformers' decoder for a 'no mask' prompt and no points."""
    features = sam.vision_encoder(pixels)[0]
    place = sam.get_image_wide_positional_embeddings().expand(len(pixels), -1, -1, -1)
    dense = sam.prompt_encoder.no_mask_embed.weight[..., None, None]
    dense = dense.expand(len(pixels), -1, *features.shape[-2:])
    return sam.mask_decoder(features, place, None, dense, multimask_output=False)[0][:, 0]


@pytest.mark.parametrize('house', ['meta', 'hf'])
@torch.no_grad()
def test_files_give_the_outputs_of_transformers(sam, files, house):
    model = tiny_segmentor().double()
    for value in model.parameters():  # nothing of the start may be left
        value.fill_(torch.nan)
    parts = load_sam(dict(encoder=model.encoder, decoder=model.decoder), files[house])
    assert parts == ['encoder', 'decoder']
    pixels = images()
    features = model.encoder(pixels)[0]
    torch.testing.assert_close(features, sam.vision_encoder(pixels)[0])
    logits = reference_logits(sam, pixels)
    assert logits.shape == (2, 1, 32, 32)
    assert logits.std() > 0.1
    torch.testing.assert_close(model.decoder(features), logits)


@torch.no_grad()
def test_a_file_with_an_encoder_alone_leaves_the_decoder(sam, files):
    model = tiny_segmentor().double()
    before = {name: value.clone() for name, value in model.decoder.state_dict().items()}
    parts = load_sam(dict(encoder=model.encoder, decoder=model.decoder), files['mm'])
    assert parts == ['encoder']
    pixels = images()
    torch.testing.assert_close(model.encoder(pixels)[0], sam.vision_encoder(pixels)[0])
    torch.testing.assert_close(model.decoder.state_dict(), before, rtol=0, atol=0)


@torch.no_grad()
def test_vision_model_of_transformers_alone(sam, files, tmp_path):
    state = {n: v for n, v in sam.state_dict().items() if n.startswith('vision_encoder.')}
    torch.save(state, tmp_path / 'vision.pth')
    encoder = tiny_segmentor().double().encoder
    assert load_sam(dict(encoder=encoder), tmp_path / 'vision.pth') == ['encoder']
    torch.testing.assert_close(encoder(images())[0], sam.vision_encoder(images())[0])


@torch.no_grad()
def test_our_own_checkpoint_is_a_file_of_sam(files, tmp_path):
    first = tiny_segmentor(pretrained=str(files['meta']))
    torch.save(dict(state_dict=first.state_dict()), tmp_path / 'own.pth')
    second = tiny_segmentor(pretrained=str(tmp_path / 'own.pth'))
    second.init_weights()  # as the runner does; must change nothing
    torch.testing.assert_close(second(images().float()), first(images().float()), rtol=0, atol=0)


@torch.no_grad()
def test_positions_are_resized_for_other_images(files):
    encoder = dict(TINY.encoder) | dict(img_size=128)
    model = tiny_segmentor(encoder=encoder, pretrained=str(files['meta']))
    assert model.encoder.pos_embed.shape == (1, 16, 16, 64)
    assert model(torch.randn(1, 3, 128, 128)).shape == (1, 1, 128, 128)


def changed(path: Path, tmp_path: Path, change) -> str:
    state = torch.load(path)
    change(state)
    torch.save(state, tmp_path / 'changed.pth')
    return str(tmp_path / 'changed.pth')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: s.pop('image_encoder.blocks.2.attn.qkv.bias'), 'lacks encoder.layers.2.attn'),
        (lambda s: s.pop('mask_decoder.iou_token.weight'), 'lacks decoder.iou_token.weight'),
        (
            lambda s: s.update({'image_encoder.extra': torch.zeros(1)}),
            'its tensor image_encoder.extra has no place',
        ),
        (
            lambda s: s.update({'image_encoder.neck.1.bias': torch.zeros(31)}),
            r'its tensor image_encoder.neck.1.bias is \(31,\), the model has \(32,\)',
        ),
        (
            lambda s: s.update({'image_encoder.pos_embed': torch.zeros(1, 8, 8, 63)}),
            r'its tensor image_encoder.pos_embed is \(1, 8, 8, 63\)',
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(files, tmp_path, change, message):
    path = changed(files['meta'], tmp_path, change)
    with pytest.raises(UserError, match=f'{re.escape(path)} does not fit: .*{message}'):
        tiny_segmentor(pretrained=path)


def test_files_that_are_none_of_sam_are_refused(tmp_path):
    torch.save({'layers.0.weight': torch.zeros(1)}, tmp_path / 'other.pth')
    with pytest.raises(UserError, match='holds no encoder of SAM.*first is .layers.0.weight'):
        tiny_segmentor(pretrained=str(tmp_path / 'other.pth'))
    torch.save(dict(model=Path), tmp_path / 'code.pth')
    with pytest.raises(UserError, match='such files can run code'):
        tiny_segmentor(pretrained=str(tmp_path / 'code.pth'))
    with pytest.raises(UserError, match='does not exist'):
        tiny_segmentor(pretrained=str(tmp_path / 'none.pth'))


def test_no_two_tensors_get_one_name_but_for_the_shared_positions():
    for names in (list(meta_names()), list(set(meta_names().values()))):
        ours = sam_names(names)
        twice = [name for name in set(ours.values()) if list(ours.values()).count(name) > 1]
        assert set(twice) <= {'decoder.positional_encoding_gaussian_matrix'}
        assert len(set(ours.values())) == len(tiny_segmentor().state_dict())
