"""Whether more or less of a metric is better: inferred, or asked for, wherever one is ranked by."""

import json
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from test_search_loop import SMALL, search
from test_search_report import fill, history

from tas_lora import UserError
from tas_lora.config import checked_config
from tas_lora.engine.hooks import SafeCheckpointHook
from tas_lora.metric_rules import GREATER, LESS, inferred_rule
from tas_lora.report.results import read_results

TOP1 = 'accuracy/top1'


def test_words_are_those_of_mmengine():
    assert list(GREATER) == CheckpointHook._default_greater_keys
    assert list(LESS) == [*CheckpointHook._default_less_keys, 'cross_entropy']


@pytest.mark.parametrize(
    'metric', ['accuracy/top1', 'single-label/precision', 'multi-label/mAP', 'LOSS', 'val_loss']
)
def test_rules_are_those_of_save_best(metric):
    assert [inferred_rule(metric)] == CheckpointHook(save_best=metric).rules


@pytest.mark.parametrize('metric', ['single-label/f1-score', 'top/cross_entropy', 'accuracy_loss'])
def test_no_guess_without_a_word_or_with_two_senses(metric):
    assert inferred_rule(metric) is None
    with pytest.raises(UserError, match=f"rule must be given for '{metric}'"):
        SafeCheckpointHook(save_best=metric)
    assert SafeCheckpointHook(save_best=metric, rule='less').rules == ['less']


def test_own_metric_has_a_rule_for_best_checkpoints():
    hook = SafeCheckpointHook(save_best=['largest/cross_entropy', 'largest/accuracy/top1'])
    assert hook.rules == ['less', 'greater']


def test_words_of_the_user_count():
    hook = SafeCheckpointHook(save_best='single-label/f1-score', greater_keys=['f1'])
    assert hook.rules == ['greater']


def test_a_search_by_accuracy_finds_the_highest(digits_config):
    cfg = digits_config('search', options=SMALL | {'val_cfg.score': TOP1})
    scores = [line[TOP1] for line in search(cfg)]
    assert min(scores) < max(scores)
    best = json.loads((Path(cfg.work_dir) / 'best_subnet.json').read_text())
    assert best[TOP1] == max(scores)
    assert best['rule'] == 'greater'


def test_a_search_asks_for_the_rule_of_an_unknown_metric(digits_config):
    cfg = digits_config('search', options={'val_cfg.score': 'single-label/f1-score'})
    with pytest.raises(UserError, match='rule must be given'):
        Runner.from_cfg(cfg).val_loop  # noqa: B018  built on first access


def test_a_rule_against_the_name_is_logged(digits_config, capsys):
    options = {'val_cfg.score': TOP1, 'val_cfg.rule': 'less'}
    Runner.from_cfg(digits_config('search', options=options)).val_loop  # noqa: B018
    warnings = [line for line in capsys.readouterr().out.splitlines() if 'WARNING' in line]
    assert any(f"'less', but the name '{TOP1}' suggests 'greater'" in w for w in warnings)


def test_the_report_of_a_history_alone_infers_too(tmp_path):
    fill(tmp_path, [line | dict(top1=-line.get('cross_entropy', 0)) for line in history()])
    ranked = [c.score for c in read_results(tmp_path, 'top1').ranking]
    assert ranked == sorted(ranked, reverse=True)
    assert len(set(ranked)) > 1


def watching(monitor: str, **given) -> dict:
    plateau = dict(type='ReduceOnPlateauLR', monitor=monitor, **given)
    stop = dict(type='EarlyStoppingHook', monitor=monitor, **given)
    cfg = Config(dict(model=dict(), param_scheduler=dict(experts=[plateau]), custom_hooks=[stop]))
    cfg = checked_config(cfg)
    return [part.get('rule') for part in (*cfg.param_scheduler.experts, *cfg.custom_hooks)]


def test_schedules_and_stops_that_watch_a_metric():
    assert watching('largest/accuracy/top1') == ['greater', 'greater']
    assert watching('largest/cross_entropy')[1] == 'less'  # the schedule's default
    assert watching('largest/single-label/f1-score', rule='greater') == ['greater', 'greater']
    with pytest.raises(UserError, match=r'param_scheduler.experts.0.rule must be given for'):
        watching('largest/single-label/f1-score')
