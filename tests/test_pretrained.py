"""Pretrained networks of timm, transformers and MMPretrain as supernets, against the libraries."""

import json
import re
from collections import Counter
from copy import deepcopy

import pytest
import torch
from conftest import call_tool
from mmengine.config import Config
from mmengine.runner import save_checkpoint
from mmpretrain import get_model
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS
from safetensors.torch import load_file, save_file

from tas_lora import (
    Subnet,
    UserError,
    count_params,
    export_subnet,
    load_supernet,
    supernet_from,
)
from tas_lora.engine import SupernetRunner
from tas_lora.models.checkpoint import adapt_state_dict, adapt_to_start
from tas_lora.models.pretrained.build import model_config_of
from tas_lora.structures import ratio_of

timm = pytest.importorskip('timm')
transformers = pytest.importorskip('transformers')

CLASSES = 7
SIZES = dict(embed_dim=48, depth=3, num_heads=3, img_size=64, num_classes=CLASSES)
SMALL = dict(img_size=56)  # four patches of 14 on a side
TIMM = {
    'deit': ('deit_tiny_patch16_224', {}),
    'augreg': ('vit_base_patch32_224', {}),
    'no_head': ('vit_tiny_patch16_224', dict(num_classes=0)),
    'clip': ('vit_base_patch32_clip_224', {}),
    'clip_quickgelu': ('vit_base_patch16_clip_quickgelu_224', {}),
    'dinov2': ('vit_small_patch14_dinov2', SMALL),
    'dinov2_registers': ('vit_small_patch14_reg4_dinov2', SMALL),
    'deit3': ('deit3_small_patch16_224', {}),
    'siglip_gap': ('vit_base_patch16_siglip_gap_224', {}),
    'siglip_gap_tanh': ('vit_base_patch32_siglip_gap_256.v2_webli', {}),
    'registers_gap': ('vit_medium_patch16_reg4_gap_256', {}),
    'registers_positions': ('vit_so150m_patch16_reg4_gap_256', {}),
    'flexivit': ('flexivit_small', dict(img_size=96)),
    'no_qkv_bias': ('vit_base_patch16_224_miil', {}),
    'no_final_norm': ('vit_intern300m_patch14_448', SMALL),
    'class_token_unused': ('vit_tiny_patch16_224', dict(global_pool='avg')),
    'odd_mlp': ('vit_tiny_patch16_224', dict(mlp_ratio=3.37)),
    'narrow_heads': ('vit_tiny_patch16_224', dict(num_heads=6)),
    'one_channel': ('vit_tiny_patch16_224', dict(in_chans=1)),
    'dynamic': ('vit_tiny_patch16_224', dict(dynamic_img_size=True, dynamic_img_pad=True)),
}


def perturbed(module: torch.nn.Module) -> torch.nn.Module:
    """Move all weights: what starts at zero or one would hide where it belongs."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(0.2 * torch.randn(value.shape, generator=generator))
    module.eval()
    return module


def timm_model(name: str, **changes) -> torch.nn.Module:
    torch.manual_seed(0)
    architecture, own = TIMM[name]
    return perturbed(timm.create_model(architecture, **(SIZES | own | changes)))


def pictures(side: int, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(5))


def output(model, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found = model(images, mode='tensor')
    return found[-1] if model.head is None else found


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert expected.std() > 1e-3
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize('name', TIMM)
@torch.no_grad()
def test_timm_networks(name):
    vit = timm_model(name)
    before = deepcopy(vit.state_dict())
    model = supernet_from(vit)
    assert (model.head is None) == (name == 'no_head')
    images = pictures(vit.patch_embed.img_size[0], vit.patch_embed.proj.in_channels)
    assert_close(output(model, images), vit(images))
    assert all(torch.equal(value, before[key]) for key, value in vit.state_dict().items())

    larger = 2 * vit.patch_embed.img_size[0]
    model = supernet_from(vit, img_size=larger, num_classes=4)
    assert model.head.num_classes == 4
    if name != 'no_head':  # one of as many classes is kept
        same = supernet_from(vit, num_classes=CLASSES)
        assert torch.equal(same.head.fc.weight, vit.head.weight)
    vit.set_input_size((larger, larger))
    images = pictures(larger, images.shape[1])
    assert_close(model.backbone(images)[-1], vit.forward_head(vit.forward_features(images), True))


def test_positions_of_a_file_for_this_size_stay(tmp_path):
    """They are not resized to the size that the name stands for, and back."""
    torch.manual_seed(0)
    vit = perturbed(timm.create_model('vit_tiny_patch16_224', img_size=64, num_classes=3))
    save_file(vit.state_dict(), tmp_path / 'vit.safetensors')
    options = dict(checkpoint=tmp_path / 'vit.safetensors', img_size=64)
    model, images = supernet_from('timm:vit_tiny_patch16_224', **options), pictures(64)
    with torch.no_grad():
        assert_close(output(model, images), vit(images))


def test_numbers_of_parameters():
    """The library's own, where no bias is missing and no token folded."""
    for name in ('deit', 'dinov2', 'dinov2_registers', 'siglip_gap', 'registers_gap', 'deit3'):
        vit = timm_model(name)
        model = supernet_from(vit)
        expected = sum(value.numel() for value in vit.parameters())
        assert sum(value.numel() for value in model.parameters()) == expected, name
        scales = sum(v.numel() for n, v in model.named_parameters() if n.endswith('_scale'))
        # A network of this size has its LayerScale in the layers before.
        assert count_params(model.backbone.arch, **model.image_spec) == expected - scales, name


def test_a_slice_is_the_network_of_the_sliced_tensors():
    """The independent network: timm's own, of the smaller size, filled by hand."""
    vit, width, heads, hidden = timm_model('dinov2', num_heads=6), 40, 5, 96
    model = supernet_from(vit)
    model.set_subnet(Subnet(width, [heads] * 2, [ratio_of(hidden, width)] * 2))
    sizes = dict(embed_dim=width, num_heads=heads, depth=2, mlp_ratio=hidden / width)
    plain = timm.create_model(TIMM['dinov2'][0], **(SIZES | SMALL | sizes)).eval()
    state, inner = vit.state_dict(), heads * 8
    for name, value in plain.state_dict().items():
        whole = state[name]
        if '.qkv.' in name:  # the first heads of query, of key and of value
            whole = torch.cat([part[:inner] for part in whole.chunk(3)])
        value.copy_(whole[tuple(slice(size) for size in value.shape)])
    images = pictures(56)
    assert_close(output(model, images), plain(images))


# All of timm's pretrained networks of these two modules


def tags_of_timm() -> list[str]:
    names = {*timm.list_models(module='vision_transformer'), *timm.list_models(module='deit')}
    return [tag for tag in timm.list_pretrained() if tag.partition('.')[0] in names]


def refusal(tag: str, **options) -> str:
    with torch.device('meta'):
        vit = timm.create_model(tag, weight_init='skip', **options)
    try:
        model_config_of(vit)
    except UserError as error:
        return str(error)
    return ''


def test_share_of_timm_s_pretrained_networks():
    tags = tags_of_timm()
    refused = Counter(refusal(tag, depth=1) for tag in tags)  # all blocks of a network are alike
    assert refused.pop('') / len(tags) >= 0.78
    parts = (
        'attn_pool is AttentionPoolLatent',
        'patch_embed.norm is RmsNorm',
        'the model is VisionTransformerDistilled',
        'attn is DiffAttention',
        'attn.norm is LayerNorm',
        'blocks[0] is ParallelScalingBlock',
        'blocks[0] is DiffParallelScalingBlock',
        'blocks[0] is ResPostBlock',
        'mlp is GluMlp',
        'img_size is 384; a supernet has a multiple of the patch, 14, such as 378',
    )
    unnamed = [text for text in refused if not any(part in text for part in parts)]
    assert unnamed == []
    assert all(text.startswith('timm: ') and '\n' not in text for text in refused)


@pytest.mark.full
def test_depth_changes_no_answer():
    tags = tags_of_timm()[::12]
    assert [refusal(tag) for tag in tags] == [refusal(tag, depth=1) for tag in tags]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(qk_norm=True), 'attn.q_norm is LayerNorm'),
        (dict(scale_mlp_norm=True), 'mlp.norm is LayerNorm'),
        (dict(scale_attn_norm=True), 'attn.norm is LayerNorm'),
        (dict(pos_embed='none'), 'pos_embed is None'),
        (dict(global_pool='avg', pool_include_prefix=True), 'pool_include_prefix is True'),
        (dict(global_pool='avgmax'), "global_pool is 'avgmax'"),
        (dict(global_pool='max'), "global_pool is 'max'"),
        (dict(global_pool=''), "global_pool is ''"),
        (dict(global_pool='map'), 'attn_pool is AttentionPoolLatent'),
        (dict(norm_layer='rmsnorm'), 'norm1 is RmsNorm'),
        (dict(act_layer='silu'), 'mlp.act is SiLU'),
        (dict(embed_norm_layer='layernorm'), 'patch_embed.norm is LayerNorm'),
        (dict(img_size=(64, 32)), r'img_size is \(64, 32\)'),
        (dict(patch_size=(16, 8)), r'kernel_size is \(16, 8\)'),
        (dict(img_size=70), 'img_size is 70; a supernet has a multiple of the patch, 16'),
    ],
)
def test_parts_that_a_supernet_lacks(options, message):
    vit = timm.create_model('vit_tiny_patch16_224', **(SIZES | options))
    with pytest.raises(UserError, match=f'^timm: .*{message}') as caught:
        supernet_from(vit)
    assert '\n' not in str(caught.value)


def test_parts_that_were_exchanged():
    vit = timm_model('deit')
    vit.norm.eps = 1e-3
    with pytest.raises(UserError, match=r'eps of the norms is \[1e-06, 0.001\]'):
        supernet_from(vit)
    vit = timm_model('deit')
    vit.head = torch.nn.Sequential(torch.nn.Linear(48, 7))
    with pytest.raises(UserError, match='head is Sequential; a supernet has a linear layer'):
        supernet_from(vit)
    vit = timm_model('deit')
    vit.register_forward_hook(lambda module, inputs, result: 2 * result)
    with pytest.raises(UserError, match='differs from the original by 5.0e-01 of its largest'):
        supernet_from(vit)
    with pytest.raises(UserError, match='^source must be a model of timm, .*Linear of torch'):
        supernet_from(torch.nn.Linear(2, 2))


def test_sizes_that_do_not_fit():
    for original in (timm_model('deit'), hf_model('ViTModel'), mm_model('cls_token')):
        with pytest.raises(UserError, match='img_size is 70; a supernet has a multiple of the pat'):
            supernet_from(original, img_size=70)
        with pytest.raises(UserError, match='^img_size must be a positive integer, got -1'):
            supernet_from(original, img_size=-1)
        with pytest.raises(UserError, match='^num_classes must be a positive integer, got 0'):
            supernet_from(original, num_classes=0)


def test_the_meta_device():
    with torch.device('meta'):
        vit = timm.create_model('vit_giant_patch14_clip_224', depth=2)
    model = supernet_from(vit, num_classes=3)
    assert all(value.is_meta for value in model.parameters())
    assert (model.backbone.arch.embed_dim, model.head.num_classes) == (1408, 3)


# Transformers

COMMON = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, num_labels=CLASSES)
VIT = COMMON | dict(intermediate_size=100, image_size=64, patch_size=16)
DINO = COMMON | dict(mlp_ratio=3, image_size=56, patch_size=14)
CLIP = VIT | dict(projection_dim=20)
HF = {
    'ViTModel': VIT | dict(hidden_act='gelu_pytorch_tanh'),
    'ViTForImageClassification': VIT | dict(qkv_bias=False),
    'DeiTModel': VIT,
    'DeiTForImageClassification': VIT,
    'Dinov2Model': DINO,
    'Dinov2ForImageClassification': DINO,
    'Dinov2WithRegistersModel': DINO,
    'Dinov2WithRegistersForImageClassification': DINO | dict(num_register_tokens=2),
    'CLIPVisionModel': CLIP,
    'CLIPVisionModelWithProjection': CLIP | dict(hidden_act='gelu'),
    'CLIPForImageClassification': dict(vision_config=CLIP, num_labels=CLASSES),
}
if transformers.__version__.startswith('4.'):
    del HF['Dinov2WithRegistersForImageClassification']  # there, registers count as patches
    del HF['CLIPForImageClassification']  # it takes images of one size alone


def hf_model(name: str, **changes) -> torch.nn.Module:
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    return perturbed(cls(cls.config_class(**(HF[name] | changes))))


def hf_output(model, images: torch.Tensor, **options) -> torch.Tensor:
    """Logits, embedding, or the features that a classifier of this class takes."""
    found, name = model(images, **options), type(model).__name__
    if 'logits' in found or 'image_embeds' in found:
        return found['logits' if 'logits' in found else 'image_embeds']
    if 'Dinov2' in name:
        first = 1 + (4 if 'Registers' in name else 0)
        return torch.cat([found.pooler_output, found.last_hidden_state[:, first:].mean(1)], dim=1)
    return found.pooler_output if 'CLIP' in name else found.last_hidden_state[:, 0]


@pytest.mark.parametrize('name', HF)
@torch.no_grad()
def test_networks_of_transformers(name):
    original = hf_model(name)
    side = 56 if 'Dinov2' in name else 64
    model = supernet_from(original)
    assert_close(output(model, pictures(side)), hf_output(original, pictures(side)))
    larger = supernet_from(original, img_size=2 * side)
    options = {} if 'Dinov2' in name else dict(interpolate_pos_encoding=True)
    expected = hf_output(original, pictures(2 * side), **options)
    assert_close(output(larger, pictures(2 * side)), expected)


def test_what_is_refused_of_transformers():
    with pytest.raises(UserError, match='transformers: use_swiglu_ffn is True'):
        supernet_from(hf_model('Dinov2Model', use_swiglu_ffn=True))
    with pytest.raises(UserError, match='transformers: layer 0 is SiLU'):
        supernet_from(hf_model('ViTModel', hidden_act='silu'))
    cls = transformers.DeiTForImageClassificationWithTeacher
    with pytest.raises(UserError, match='the model is DeiTForImageClassificationWithTeacher'):
        supernet_from(cls(cls.config_class(**VIT)))


# MMPretrain

ARCH = dict(embed_dims=48, num_layers=2, num_heads=3, feedforward_channels=100)
MM = {
    'cls_token': {},
    'avg_featmap': dict(out_type='avg_featmap', final_norm=False),
    'no_class_token': dict(out_type='avg_featmap', final_norm=False, with_cls_token=False),
    'pre_norm': dict(pre_norm=True, norm_cfg=dict(type='LN', eps=1e-5)),
    'no_final_norm': dict(final_norm=False, qkv_bias=False),
    'layer_scale': dict(layer_scale_init_value=0.1),
    'quick_gelu': dict(layer_cfgs=dict(act_cfg=dict(type='mmpretrain.QuickGELU'))),
}
LINEAR = dict(type='LinearClsHead', num_classes=CLASSES, in_channels=48)
HEADS = (LINEAR, LINEAR | dict(type='VisionTransformerClsHead'))


def mm_model(name: str, head: dict | None = None) -> torch.nn.Module:
    torch.manual_seed(0)
    backbone = dict(type='VisionTransformer', arch=ARCH, img_size=64, **MM[name])
    data = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], to_rgb=True)
    whole = dict(type='ImageClassifier', backbone=backbone, head=head, data_preprocessor=data)
    return perturbed(MODELS.build(whole if head else backbone))


@pytest.mark.parametrize('name', MM)
@torch.no_grad()
def test_networks_of_mmpretrain(name):
    vit = mm_model(name)
    model = supernet_from(vit)
    assert_close(output(model, pictures(64)), vit(pictures(64))[-1])
    assert_close(supernet_from(vit, img_size=96).backbone(pictures(96))[-1], vit(pictures(96))[-1])


@pytest.mark.parametrize('head', HEADS, ids=lambda head: head['type'])
def test_classifiers_of_mmpretrain(head):
    original = mm_model('cls_token', head)
    assert isinstance(original, ImageClassifier)
    model = supernet_from(original)
    with torch.no_grad():
        assert_close(output(model, pictures(64)), original(pictures(64), mode='tensor'))
    assert model.data_preprocessor.mean.flatten().tolist() == [1, 2, 3]
    assert model.data_preprocessor.to_rgb


def test_what_is_refused_of_mmpretrain():
    vit = dict(type='VisionTransformer', arch=ARCH, img_size=64)
    for changes, message in (
        (dict(out_type='avg_featmap'), "final_norm is True with out_type 'avg_featmap'"),
        (dict(out_type='featmap'), "out_type is 'featmap'"),
        (dict(out_indices=[0]), r'out_indices is \[0\]'),
        (dict(layer_cfgs=dict(ffn_type='swiglu_fused')), 'ffn is SwiGLUFFNFused'),
        (dict(norm_cfg=dict(type='BN1d')), 'ln1 is BatchNorm1d'),
    ):
        with pytest.raises(UserError, match=f'MMPretrain: .*{message}'):
            supernet_from(MODELS.build(vit | changes))
    other = dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=18))
    with pytest.raises(UserError, match='MMPretrain: backbone is ResNet'):
        supernet_from(MODELS.build(other))
    hidden = mm_model('cls_token', HEADS[1] | dict(hidden_dim=9))
    with pytest.raises(UserError, match='head is VisionTransformerClsHead'):
        supernet_from(hidden)


# Files


def files(tmp_path) -> dict:
    """One file of each library, as it writes it, with the model in it."""
    found = {}
    for name in ('deit', 'clip', 'dinov2_registers', 'registers_gap', 'siglip_gap'):
        vit = timm_model(name)
        save_file(vit.state_dict(), tmp_path / f'{name}.safetensors')
        found[name] = (vit, tmp_path / f'{name}.safetensors')
    for name in HF:
        model = hf_model(name)
        model.save_pretrained(tmp_path / name)
        found[name] = (model, tmp_path / name / 'model.safetensors')
    for name in ('cls_token', 'avg_featmap', 'pre_norm'):
        model = mm_model(name, LINEAR)
        file = str(tmp_path / f'{name}.pth')
        save_checkpoint(dict(state_dict=model.state_dict(), meta=dict(epoch=1)), file)
        found[name] = (model, file)
    return found


def test_files_load_as_the_models_do(tmp_path):
    """By ``load_supernet``, and by ``init_cfg`` of the backbone."""
    for original, file in files(tmp_path).values():
        model = supernet_from(original)
        config = model_config_of(original)
        side = model.backbone.image_spec['img_size']
        expected = output(model, pictures(side))
        loaded = load_supernet(dict(model=config), file)
        assert_close(output(loaded, pictures(side)), expected)

        init_cfg = dict(type='Pretrained', checkpoint=str(file))
        backbone = MODELS.build(config['backbone'] | dict(init_cfg=init_cfg))
        backbone.eval()
        backbone.init_weights()
        started = load_supernet(
            dict(model=config | dict(backbone=config['backbone'] | dict(init_cfg=init_cfg)))
        )
        with torch.no_grad():
            for each in (backbone, started.backbone):
                assert_close(each(pictures(side))[-1], model.backbone(pictures(side))[-1])


def resized(backbone, size: int) -> torch.Tensor:
    """Positions for a larger image: those of patches are interpolated."""
    spec, positions = backbone.image_spec, backbone.pos_embed.detach()
    old, new = spec['img_size'] // spec['patch_size'], size // spec['patch_size']
    prefix, patches = positions.split([positions.shape[1] - old**2, old**2], dim=1)
    grid = patches.transpose(1, 2).unflatten(2, (old, old))
    grid = torch.nn.functional.interpolate(grid, size=(new, new), mode='bicubic')
    return torch.cat([prefix, grid.flatten(2).transpose(1, 2)], dim=1)


def test_training_starts_from_files(tmp_path):
    """Other images and other classes, as ``load_from`` adapts them."""
    for name, (original, file) in files(tmp_path).items():
        size = 84 if 'ino' in name else 96
        config = model_config_of(original, img_size=size, num_classes=11)
        model = MODELS.build(config)
        state = read(file)
        adapt_to_start(state, model.state_dict(keep_vars=True))
        adapt_state_dict(state, model.state_dict())
        model.load_state_dict(state)
        own = supernet_from(original, img_size=size, num_classes=11)
        for key, value in own.backbone.state_dict().items():
            if key == 'pos_embed':  # libraries resize in several ways
                value = resized(supernet_from(original).backbone, size)
                torch.testing.assert_close(state[f'backbone.{key}'], value)
            else:
                assert torch.equal(value, state[f'backbone.{key}']), (name, key)
        assert torch.equal(state['head.fc.weight'], model.head.fc.weight)


def test_the_runner_loads_files(tmp_path):
    found = files(tmp_path)
    for name in ('registers_gap', 'Dinov2WithRegistersModel', 'pre_norm'):
        original, file = found[name]
        runner = SupernetRunner(
            model=model_config_of(original),
            work_dir=str(tmp_path / 'work'),
            experiment_name=name,
            default_scope='mmpretrain',
        )
        runner.load_checkpoint(str(file))
        model = supernet_from(original)
        images = pictures(model.backbone.image_spec['img_size'])
        assert_close(output(runner.model.eval(), images), output(model, images))


def read(file) -> dict:
    if str(file).endswith('safetensors'):
        return load_file(file)
    return dict(torch.load(file, weights_only=True)['state_dict'])


def test_names_of_other_writers():
    """DINOv2's own code, DeiT III's, and a whole CLIP."""
    model = supernet_from(timm_model('dinov2_registers'))
    images, expected = pictures(56), output(model, pictures(56))
    state = timm_model('dinov2_registers').state_dict()
    own = {key: value for key, value in state.items() if not key.startswith('head.')}
    own['register_tokens'] = own.pop('reg_token')
    place = torch.full((1, 1, 48), 0.5)  # there, the class token has a position
    own['pos_embed'] = torch.cat([place, own['pos_embed']], dim=1)
    own['cls_token'] = own['cls_token'] - place
    own['mask_token'] = torch.zeros(1, 48)
    own |= {key: value for key, value in state.items() if key.startswith('head.')}
    model.backbone.cls_token.data.zero_()
    model.load_state_dict(own)
    assert_close(output(model, images), expected)

    model = supernet_from(timm_model('deit3'))
    state, expected = timm_model('deit3').state_dict(), output(model, pictures(64))
    for name in [name for name in state if '.ls' in name]:
        state[name.replace('.ls', '.gamma_').removesuffix('.gamma')] = state.pop(name)
    model.backbone.blocks[0].mlp_scale.data.zero_()
    model.load_state_dict(state)
    assert_close(output(model, pictures(64)), expected)

    vision = hf_model('CLIPVisionModelWithProjection')
    model, state = supernet_from(vision), vision.state_dict()
    state |= {'text_model.x': torch.zeros(2), 'logit_scale': torch.zeros(())}
    expected = output(model, pictures(64))
    model.load_state_dict(state)
    assert_close(output(model, pictures(64)), expected)


def test_files_that_do_not_fit(tmp_path):
    deit, dino = (supernet_from(timm_model(name)) for name in ('deit', 'dinov2'))
    clip = timm_model('clip').state_dict()
    with pytest.raises(UserError, match='patch_size 32 in the checkpoint, 16 in the config'):
        deit.load_state_dict(clip)
    wide = timm_model('deit', embed_dim=96).state_dict()
    with pytest.raises(UserError, match='attention_width 96 x 3 in the checkpoint, 48 x 3 in'):
        deit.load_state_dict(wide)
    state = timm_model('deit').state_dict()
    normless = {name: value for name, value in state.items() if not name.startswith('norm.')}
    with pytest.raises(UserError, match='differ in 2 tensors, the first backbone.norm.bias'):
        deit.load_state_dict(normless)
    state = timm_model('deit').state_dict() | {'attn_pool.latent': torch.zeros(1, 1, 48)}
    with pytest.raises(UserError, match='timm: the supernet has no part for attn_pool.latent'):
        deit.load_state_dict(state)
    with pytest.raises(UserError, match='the first backbone.blocks.0.attn_scale: .* missing in'):
        supernet_from(timm_model('dinov2', init_values=0)).load_state_dict(dino.state_dict())
    config = Config(dict(model=model_config_of(timm_model('deit'))))
    config.model.backbone.update(max_relative_position=3)
    with pytest.raises(UserError, match='max_relative_position None in the checkpoint, 3 in the'):
        adapt_to_start(
            timm_model('deit').state_dict(), load_supernet(config).state_dict(keep_vars=True)
        )


def test_experts_start_fresh_on_a_pretrained_network():
    vit = timm_model('dinov2')
    config = model_config_of(vit)
    space = dict(embed_dim=[32, 48], depth=[2, 3], num_heads=[2, 3], mlp_ratio=[2.0, 4.0])
    config['backbone']['mole'] = dict(num_experts=8, rank=2)
    config['router'] = dict(type='tas_lora.LSTMRouterHead', space=space)
    model = MODELS.build(config)
    model.load_state_dict(vit.state_dict())
    with torch.no_grad():
        assert_close(output(model.eval(), pictures(56)), vit(pictures(56)))


def test_an_export_is_loaded_by_the_original_s_config(tmp_path):
    """LayerScale is in the exported layers; the config's own is one then."""
    for name in ('dinov2_registers', 'siglip_gap', 'clip_quickgelu', 'registers_gap'):
        vit = timm_model(name)
        model = supernet_from(vit)
        export_subnet(model, model.subnet, tmp_path / name)
        file = tmp_path / name / 'weights.safetensors'
        loaded = load_supernet(dict(model=model_config_of(vit)), file)
        images = pictures(model.backbone.image_spec['img_size'])
        with torch.no_grad():
            assert_close(output(loaded, images), vit(images))


# By name, and the tool


def test_sources_by_name(tmp_path):
    vit = perturbed(timm.create_model('test_vit', num_classes=5))
    torch.save(dict(model=vit.state_dict()), tmp_path / 'vit.pth')
    model = supernet_from('timm:test_vit', checkpoint=tmp_path / 'vit.pth')
    side = model.backbone.image_spec['img_size']
    with torch.no_grad():
        assert_close(output(model, pictures(side)), vit(pictures(side)))

    original = hf_model('Dinov2ForImageClassification')
    original.save_pretrained(tmp_path / 'hf')
    settings = dict(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.2, 0.1], rescale_factor=1 / 255)
    (tmp_path / 'hf/preprocessor_config.json').write_text(json.dumps(settings))
    model = supernet_from(f'hf:{tmp_path}/hf')
    with torch.no_grad():
        assert_close(output(model, pictures(56)), original(pictures(56)).logits)
    assert model.data_preprocessor.mean.flatten().tolist() == pytest.approx([127.5, 102, 76.5])

    settings = json.loads((tmp_path / 'hf/config.json').read_text())
    settings |= dict(attn_implementation='evil/kernel', auto_map={'AutoModel': 'evil--model.Evil'})
    settings |= dict(_attn_implementation='evil/kernel', quantization_config=dict(quant_method='x'))
    (tmp_path / 'hf/config.json').write_text(json.dumps(settings))
    with torch.no_grad():
        again = supernet_from(f'hf:{tmp_path}/hf')
        assert torch.equal(output(again, pictures(56)), output(model, pictures(56)))

    config = transformers.CLIPConfig(vision_config=CLIP, projection_dim=20)
    whole = perturbed(transformers.CLIPModel(config))
    whole.save_pretrained(tmp_path / 'clip')
    model = supernet_from(f'hf:{tmp_path}/clip')
    with torch.no_grad():
        expected = whole.get_image_features(pictures(64))
        expected = getattr(expected, 'pooler_output', expected)  # transformers 5
        assert_close(output(model, pictures(64)), expected)

    original = perturbed(get_model('deit-tiny_4xb256_in1k'))
    torch.save(dict(state_dict=original.state_dict()), tmp_path / 'mm.pth')
    model = supernet_from('mmpretrain:deit-tiny_4xb256_in1k', checkpoint=tmp_path / 'mm.pth')
    with torch.no_grad():
        assert_close(output(model, pictures(224)), original(pictures(224), mode='tensor'))


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        ('resnet50', "source must be a model, 'timm:NAME'"),
        ('keras:x', "source must be a model, 'timm:NAME'"),
        ('hf:nowhere', 'hf: takes a folder'),
        ('timm:no_such_vit', "timm cannot build 'no_such_vit'"),
        ('timm:resnet18', 'timm: the model is ResNet'),
        ('timm:vit_base_patch16_siglip_224', 'timm: attn_pool is AttentionPoolLatent'),
        ('mmpretrain:no_such_vit', "MMPretrain cannot build 'no_such_vit'"),
        ('timm:vit_tiny_patch16_224', 'does not fit vit_tiny_patch16_224 of timm'),
    ],
)
def test_mistakes_of_the_tool(source, message, tmp_path, capsys):
    save_file(timm_model('deit').state_dict(), tmp_path / 'weights.safetensors')
    options = ('--checkpoint', tmp_path / 'weights.safetensors', '--out', tmp_path / 'out')
    assert call_tool('supernet_from.py', source, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count('\n') == 1
    assert not (tmp_path / 'out').exists()


def test_the_tool_writes_config_and_weights(tmp_path, capsys):
    original = hf_model('Dinov2ForImageClassification')
    original.save_pretrained(tmp_path / 'hf')
    settings = dict(image_mean=[0.5] * 3, image_std=[0.25] * 3)
    (tmp_path / 'hf/preprocessor_config.json').write_text(json.dumps(settings))
    out = tmp_path / 'out'
    assert call_tool('supernet_from.py', f'hf:{tmp_path}/hf', '--out', out) == 0
    said = capsys.readouterr().out
    expected = sum(value.numel() for value in supernet_from(original).parameters())
    assert f'{expected:,} parameters' in said
    assert 'images (0 to 255): mean [127.5, 127.5, 127.5], std [63.75, 63.75, 63.75]' in said
    assert 'differs from the original by' in said
    model = load_supernet(out / 'supernet.py', out / 'supernet.pth')
    with torch.no_grad():
        assert_close(output(model, pictures(56)), original(pictures(56)).logits)
    assert model.data_preprocessor.mean.flatten().tolist() == pytest.approx([127.5] * 3)
    child = tmp_path / 'child.py'
    child.write_text(
        "_base_ = 'out/supernet.py'\nmodel = dict(head=dict(num_classes=3))\nx = _base_.model\n"
    )
    assert Config.fromfile(child).model.head.num_classes == 3
    assert call_tool('supernet_from.py', f'hf:{tmp_path}/hf', '--out', out, '--num-classes', 9) == 0
    assert load_supernet(out / 'supernet.py', out / 'supernet.pth').head.num_classes == 9


# Weights and networks that only seem to fit


def test_weights_that_a_model_of_transformers_would_drop(tmp_path):
    model = hf_model('ViTModel')
    for changes in (dict(num_hidden_layers=3), dict(hidden_size=96), dict(num_hidden_layers=1)):
        hf_model('ViTModel', **changes).save_pretrained(tmp_path / 'other')
        with pytest.raises(UserError, match='does not fit ViTModel: [0-9]+ weights (have|are) '):
            supernet_from(model, checkpoint=tmp_path / 'other/model.safetensors')
    hf_model('Dinov2WithRegistersModel').save_pretrained(tmp_path / 'registers')
    file = tmp_path / 'registers/model.safetensors'
    with pytest.raises(UserError, match='1 weights have no place, the first embeddings.register'):
        supernet_from(hf_model('Dinov2Model'), checkpoint=file)
    model.save_pretrained(tmp_path / 'biases')
    file = tmp_path / 'biases/model.safetensors'
    with pytest.raises(UserError, match='6 weights have no place, the first .*bias'):
        supernet_from(hf_model('ViTModel', qkv_bias=False), checkpoint=file)


@torch.no_grad()
def test_a_checkpoint_goes_into_the_user_s_own_model(tmp_path):
    """A head in the file that the class lacks is no fault; a change of the model stays."""
    full = hf_model('ViTForImageClassification')
    full.save_pretrained(tmp_path / 'vit')
    own = hf_model('ViTModel', qkv_bias=False, hidden_act='gelu_pytorch_tanh')
    for norm in [m for m in own.modules() if isinstance(m, torch.nn.LayerNorm)]:
        norm.eps = 1e-3
    found = supernet_from(own, checkpoint=tmp_path / 'vit/model.safetensors')
    assert found.backbone.style.norm_eps == 1e-3
    own.load_state_dict(full.vit.state_dict(), strict=False)
    expected = own(pictures(64)).last_hidden_state[:, 0]
    assert_close(output(found, pictures(64)), expected)


def test_files_are_read_in_float32(tmp_path):
    model = hf_model('Dinov2ForImageClassification')
    model.save_pretrained(tmp_path / 'hf')
    settings = json.loads((tmp_path / 'hf/config.json').read_text())
    settings |= dict(dtype='bfloat16', torch_dtype='bfloat16', return_dict=False)
    (tmp_path / 'hf/config.json').write_text(json.dumps(settings))
    found = supernet_from(f'hf:{tmp_path}/hf')
    assert torch.equal(found.head.fc.weight, model.classifier.weight)
    half = deepcopy(model).bfloat16()
    found = supernet_from(half, checkpoint=tmp_path / 'hf/model.safetensors')
    assert torch.equal(found.head.fc.weight, model.classifier.weight)
    assert half.classifier.weight.dtype == torch.bfloat16
    model.config.return_dict = False
    again = supernet_from(model)
    assert not model.config.return_dict
    model.config.return_dict = True
    with torch.no_grad():
        assert_close(output(again, pictures(56)), model(pictures(56)).logits)


def test_patches_of_a_file_are_not_resampled(tmp_path):
    save_file(timm_model('deit', patch_size=8).state_dict(), tmp_path / 'vit.safetensors')
    with pytest.raises(UserError, match=r'patch_embed.proj.weight has patches of \(8, 8\), the mo'):
        supernet_from(timm_model('deit'), checkpoint=tmp_path / 'vit.safetensors')


def test_a_head_of_zeros_hides_no_difference():
    def doubled(module, inputs, result):
        is_tuple = isinstance(result, tuple)  # of transformers 4
        return (2 * result[0], *result[1:]) if is_tuple else 2 * result

    for original, head, block in (
        (timm_model('deit'), 'head', 'blocks.1'),
        (hf_model('DeiTForImageClassification'), 'classifier', None),
        (mm_model('cls_token', LINEAR), 'head.fc', 'backbone.layers.0'),
    ):
        torch.nn.init.zeros_(original.get_submodule(head).weight)
        supernet_from(original)
        block = block or next(
            n for n, m in original.named_modules() if re.search(r'layers?\.0$', n)
        )
        original.get_submodule(block).register_forward_hook(doubled)
        with pytest.raises(UserError, match='differs from the original by'):
            supernet_from(original)


def test_several_labels_stay_several():
    original = mm_model('cls_token', LINEAR | dict(type='MultiLabelLinearClsHead', thr=0.7))
    for model in (supernet_from(original), supernet_from(original, num_classes=3)):
        assert (model.is_multi_label, model.head.thr) == (True, 0.7)
    with torch.no_grad():
        found = output(supernet_from(original), pictures(64))
        assert_close(found, original(pictures(64), mode='tensor'))
    several = dict(problem_type='multi_label_classification')
    assert supernet_from(hf_model('ViTForImageClassification', **several)).is_multi_label
    assert not supernet_from(hf_model('ViTForImageClassification')).is_multi_label


def test_images_are_large_enough_for_a_patch_and_small_enough_for_a_machine():
    for original in (timm_model('deit'), hf_model('ViTModel'), mm_model('cls_token')):
        with pytest.raises(UserError, match='img_size is 8; .* the patch, 16, such as 16'):
            supernet_from(original, img_size=8)
        with pytest.raises(UserError, match='img_size must be .* got 100000; at most 4,096'):
            supernet_from(original, img_size=100000)


@pytest.mark.parametrize(
    ('config', 'images', 'message'),
    [
        (dict(architectures=5), {}, 'architectures is 5'),
        (dict(architectures=[['ViTModel']]), {}, r"architectures is \['ViTModel'\]"),
        (dict(architectures=['CLIPModel'], vision_config=5), {}, 'vision_config is 5'),
        (dict(num_hidden_layers=10**9), {}, 'num_hidden_layers must be .*; at most 1,000'),
        (dict(image_size=10**9), {}, 'image_size must be a positive integer'),
        (dict(image_size=[10**9] * 2), {}, 'image_size must be a positive integer'),
        (dict(hidden_size='x'), {}, 'config.json is not that of a ViTModel'),
        (dict(num_hidden_layers=0), {}, 'number of layers is 0; a supernet has one or more'),
        (dict(num_hidden_layers=1), {}, 'weights have no place'),
        ({}, [], 'preprocessor'),
        ({}, dict(rescale_factor=None), 'rescale_factor must be a positive number'),
        ({}, dict(rescale_factor=0), 'rescale_factor must be a positive number'),
        ({}, dict(image_mean=0.5), 'the mean of its images is 0.5'),
        ({}, dict(image_mean=['a'] * 3), 'the mean of its images is'),
        ({}, dict(image_mean=dict(a=1)), 'the mean of its images is'),
        ({}, dict(image_std=[0.5, 0.5]), 'the std of its images is'),
        ({}, dict(image_std=[0.5, 0.5, 0]), 'the std of its images is'),
        ({}, dict(image_std=[0.5, 0.5, float('inf')]), 'the std of its images is'),
    ],
)
def test_a_stranger_s_folder(config, images, message, tmp_path, capsys):
    hf_model('ViTModel').save_pretrained(tmp_path / 'hf')
    settings = json.loads((tmp_path / 'hf/config.json').read_text()) | config
    (tmp_path / 'hf/config.json').write_text(json.dumps(settings))
    if isinstance(images, dict):
        images = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3) | images
    (tmp_path / 'hf/preprocessor_config.json').write_text(json.dumps(images))
    capsys.readouterr()
    assert call_tool('supernet_from.py', f'hf:{tmp_path}/hf', '--out', tmp_path / 'out') == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count('\n') == 1


def test_images_that_are_not_rescaled(tmp_path):
    hf_model('ViTModel').save_pretrained(tmp_path / 'hf')
    settings = dict(image_mean=[100, 110, 120], image_std=[50] * 3, do_rescale=False)
    (tmp_path / 'hf/preprocessor_config.json').write_text(json.dumps(settings))
    data = supernet_from(f'hf:{tmp_path}/hf').data_preprocessor
    assert data.mean.flatten().tolist() == [100, 110, 120]


def test_one_line_for_a_folder_that_fits(tmp_path, capfd):
    hf_model('ViTForImageClassification').save_pretrained(tmp_path / 'hf')
    settings = json.loads((tmp_path / 'hf/config.json').read_text())
    (tmp_path / 'hf/config.json').write_text(json.dumps(settings | dict(architectures='ViTModel')))
    capfd.readouterr()
    supernet_from(f'hf:{tmp_path}/hf')  # the classifier is not read
    assert capfd.readouterr().err == ''


def test_models_that_cannot_be_read():
    vit = timm_model('deit')
    torch.nn.utils.weight_norm(vit.head)
    vit.head(torch.zeros(1, 48)).sum()
    with pytest.raises(UserError, match='the model cannot be copied'):
        supernet_from(vit)
    vit = timm_model('deit')
    vit.pretrained_cfg = dict(mean=0.5, std=0.5)
    with pytest.raises(UserError, match='timm: the mean of its images is 0.5'):
        supernet_from(vit)
    vit = timm_model('deit')
    vit.blocks[0].norm1.weight = None
    with pytest.raises(UserError, match='norm1'):
        supernet_from(vit)
    vit = timm_model('deit')
    for block in vit.blocks:
        block.attn.num_heads = 5
    with pytest.raises(UserError, match=r'width of the heads is \[9.6\]; a supernet has one whole'):
        supernet_from(vit)
    with pytest.raises(UserError, match='number of blocks is 0; a supernet has one or more'):
        supernet_from(timm_model('deit', depth=0))
    vit = timm_model('deit')
    torch.nn.init.constant_(vit.blocks[1].mlp.fc1.bias, torch.nan)
    with pytest.raises(UserError, match=r'infinite or NaN, such as backbone.blocks.1.fc1.bias'):
        supernet_from(vit)


def test_a_checkpoint_needs_a_model_with_values(tmp_path):
    vit = timm_model('deit')
    save_file(vit.state_dict(), tmp_path / 'vit.safetensors')
    with torch.device('meta'):
        bare = timm.create_model('vit_tiny_patch16_224', **SIZES)
    with pytest.raises(UserError, match='^source has no values'):
        supernet_from(bare, checkpoint=tmp_path / 'vit.safetensors')
    vit.pretrained_cfg = None
    supernet_from(vit, checkpoint=tmp_path / 'vit.safetensors')


def test_a_whole_clip_is_its_image_encoder():
    config = transformers.CLIPConfig(vision_config=CLIP, projection_dim=20)
    whole = perturbed(transformers.CLIPModel(config))
    with torch.no_grad():
        expected = whole.get_image_features(pictures(64))
        expected = getattr(expected, 'pooler_output', expected)  # transformers 5
        assert_close(output(supernet_from(whole), pictures(64)), expected)


def test_a_pretrained_init_cfg_stands_alone():
    config = model_config_of(timm_model('deit'))
    pretrained = dict(type='Pretrained', checkpoint='x.pth')
    config['backbone']['init_cfg'] = [dict(type='Normal', layer='Linear'), pretrained]
    with pytest.raises(UserError, match='alone, got'):
        load_supernet(dict(model=config))
