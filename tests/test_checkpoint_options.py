"""MMEngine's options of the checkpoint hook: each works in ours, or is refused at the start."""

from pathlib import Path

import pytest
from mmengine.hooks import CheckpointHook

from tas_lora import UserError, apis
from tas_lora.engine.hooks import SafeCheckpointHook
from tas_lora.models.safe_load import read_checkpoint, read_state_dict


def trained(digits_config, **hook) -> Path:
    cfg = digits_config('supernet', images=64)
    cfg.default_hooks.checkpoint.update(hook)
    apis.train(cfg)
    return Path(cfg.work_dir)


def test_published_keys(digits_config):
    best = 'largest/accuracy/top1'
    folder = trained(digits_config, published_keys=['meta', 'state_dict'], save_best=best)
    files = sorted((folder / 'published').iterdir())
    assert [file.name.rpartition('-')[0] for file in files][1] == 'epoch_2'
    assert files[0].name.startswith('best_largest_accuracy_top1_epoch_')
    for file in files:
        assert set(read_checkpoint(file)) == {'meta', 'state_dict'}
    weights = read_state_dict(files[1])
    assert all(
        value.equal(weights[n]) for n, value in read_state_dict(folder / 'epoch_2.pth').items()
    )
    assert apis.find_resumable(folder).name == 'epoch_2.pth'


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        (dict(published_keys='meta'), "published_keys must include 'state_dict'"),
        (
            dict(published_keys='state_dict', out_dir='s3://bucket/runs'),
            'published_keys needs checkpoints in local files',
        ),
        (dict(filename_tmpl='last.pth'), 'filename_tmpl must have one {}'),
        (dict(filename_tmpl='{}_{}.pth'), 'filename_tmpl must have one {}'),
        (dict(filename_tmpl='epoch_{}.bin'), 'filename_tmpl must have one {}'),
        (dict(filename_tmpl='best_{}.pth'), 'filename_tmpl must have one {}'),
        (dict(filename_tmpl='sub/{}.pth'), 'filename_tmpl must have one {}'),
        (dict(filename_tmpl='stopped_iter_{}.pth'), 'filename_tmpl must have one {}'),
    ],
)
def test_options_that_would_lose_checkpoints(option, message):
    CheckpointHook(**option)  # MMEngine takes it
    with pytest.raises(UserError) as error:
        SafeCheckpointHook(**option)
    assert message in str(error.value)


@pytest.mark.full
@pytest.mark.parametrize(
    ('option', 'left'),
    [
        (dict(filename_tmpl='net_{:03d}.pth'), ['net_001.pth', 'net_002.pth']),
        (dict(by_epoch=False, interval=3), ['iter_3.pth', 'iter_6.pth', 'iter_8.pth']),
        (dict(by_epoch=False, interval=3, max_keep_ckpts=1), ['iter_8.pth']),
        (dict(max_keep_ckpts=1), ['epoch_2.pth']),
        (dict(save_begin=2), ['epoch_2.pth']),
        (dict(backend_args=dict(backend='local')), ['epoch_1.pth', 'epoch_2.pth']),
        (dict(file_client_args=dict(backend='disk')), ['epoch_1.pth', 'epoch_2.pth']),
    ],
)
def test_options_that_work(digits_config, option, left):
    folder = trained(digits_config, **option)
    assert sorted(path.name for path in folder.glob('*.pth')) == left
    cfg = digits_config('supernet', images=64)
    cfg.default_hooks.checkpoint.update(option)
    cfg.resume, cfg.load_from = True, str(apis.find_resumable(folder))
    assert cfg.load_from.endswith(left[-1])
    apis.train(cfg)


@pytest.mark.parametrize('option', ['save_optimizer', 'save_param_scheduler'])
def test_checkpoints_without_a_state_to_resume_say_so(digits_config, capsys, option):
    trained(digits_config, **{option: False})
    assert 'no training can resume' in capsys.readouterr().out
