"""Tables and regimes of made-up records, and the kept weights."""

from math import comb
from pathlib import Path
from statistics import mean, stdev

import pytest
import safetensors.torch
import torch
from feature_collapse import edits, figures, measure, regime, tables
from feature_collapse.records import Records

from tas_lora import apis

PROJECT = Path(__file__).resolve().parents[1]


def made_up(family: str, seed: int, top1: list[float], subnet: int | None = None) -> dict:
    found = dict(
        top1=top1, loss=top1, similarity=None if subnet is not None else [[1, 0.5], [0.5, 1]]
    )
    return dict(
        net=f'{family}{"" if subnet is None else f"_{subnet}"}_seed{seed}',
        family=family,
        method=tables.method_of(family),
        part='stage2',
        rate=None,
        seed=seed,
        subnet=subnet,
        stretch=2.0 if '_x2' in family else 1.0,
        epochs=3,
        iterations=30 if family != 'autoformer' else 60,
        seconds=2.0,
        curves={},
        delta_w=[0.1] * len(top1),
        gate_shift=None,
        heldout=found,
        test=None,
    )


def test_tables_hold_means_deviations_and_paired_differences():
    bare = {0: [80.0, 84.0], 1: [82.0, 83.0]}
    mole = {0: [81.0, 84.5], 1: [82.0, 84.0]}
    alone = {0: [82.0, 86.0], 1: [83.0, 86.0]}
    nets = [made_up('autoformer', seed, values) for seed, values in bare.items()]
    nets += [made_up('mole_x2', seed, values) for seed, values in mole.items()]
    nets += [
        made_up('independent_same', seed, [value], i)
        for seed, values in alone.items()
        for i, value in enumerate(values)
    ]
    rows = [line.split(' | ') for line in tables.top1_table(nets, [], 'heldout').splitlines()]
    assert [row[0] for row in rows[2:]] == ['| autoformer', '| mole_x2', '| independent_same']
    row = dict(zip(rows[0], rows[3], strict=True))
    assert row['subnet 0'] == f'{mean([81, 82]):.2f} +-{stdev([81, 82]):.2f}'
    assert row['mean'] == f'{mean([82.75, 83]):.2f} +-{stdev([82.75, 83]):.2f}'
    differences, gap = [1.0, 0.5, 0.0, 1.0], [2.0, 2.0, 1.0, 3.0]
    assert row['gap closed, %'] == f'{100 * sum(differences) / sum(gap):.0f}'
    scores = tables.scores_of(nets, 'heldout')
    assert list(tables.gains_of(scores, 'mole_x2', 'autoformer').values()) == differences
    assert f'| {mean(differences):.2f} +-{stdev(differences):.2f} |' in tables.difference_table(
        nets, 'heldout'
    )
    row = cells(tables.difference_table(nets, 'heldout'))[0]
    assert (row['method'], row['p']) == ('mole_x2', f'{4 / 16:.4f}')  # 0 is flipped, or not
    assert row['p over seeds'] == f'{2 / 4:.4f}'
    assert tables.scores_of(nets, 'test') == {}


def test_families_are_held_against_what_is_as_long_and_starts_from_the_same():
    tops = dict(autoformer=80.0, full_finetune=81.0, mole=80.5, mole_x2=82.0, plus_x2=84.0)
    tops |= {'full_finetune_x2': 85.0, 'full_finetune_x2.5': 89.0, 'mole_x2_lr0.1': 83.0}
    tops |= dict(longer=90.0, joint_start=91.0)
    tops |= dict(dynas=70.0, mole_dynas=74.0, full_finetune_dynas=75.0)
    nets = [made_up(family, 0, [top1]) for family, top1 in tops.items()]
    references = ('autoformer', 'full_finetune', 'longer', 'dynas', 'full_finetune_dynas')
    rows = cells(tables.difference_table(nets, 'heldout', references))
    found = {(row['method'], row['against']): float(row['difference']) for row in rows}
    others = {key: value for key, value in found.items() if key[1] != 'autoformer'}
    assert others == {
        ('mole', 'full_finetune'): -0.5,
        ('mole_x2', 'full_finetune_x2'): -3.0,
        ('mole_x2_lr0.1', 'full_finetune_x2'): -2.0,
        ('plus_x2', 'full_finetune_x2'): -1.0,
        ('joint_start', 'longer'): 1.0,
        ('autoformer', 'dynas'): 10.0,
        ('mole_dynas', 'dynas'): 4.0,
        ('full_finetune_dynas', 'dynas'): 5.0,
        ('mole_dynas', 'full_finetune_dynas'): -1.0,
    }
    assert len(found) - len(others) == len(tops) - 1


@pytest.mark.parametrize('n', [1, 4, 10, 18])
def test_sign_flips_of_equal_differences_have_the_binomial_p(n):
    """All n positive and equal: only no flip and all flips reach the mean."""
    expected = 2 / 2**n if n <= 16 else 0
    assert tables.sign_flip_p([0.3] * n) == pytest.approx(expected, abs=1e-4)
    ups = n - 1  # one of them down: 1 + n flips reach it on either side
    if 1 < n <= 16:
        expected = 2 * sum(comb(n, k) for k in range(ups, n + 1)) / 2**n
        assert tables.sign_flip_p([0.3] * ups + [-0.3]) == pytest.approx(min(expected, 1))


def cells(table: str) -> list[dict]:
    """The rows of a Markdown table."""
    header, _, *rows = ([c.strip() for c in line.split('|')[1:-1]] for line in table.splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_a_family_is_held_against_the_bound_of_its_own_supernet():
    nets = [made_up('autoformer', 0, [80.0, 84.0]), made_up('dynas', 0, [70.0, 72.0])]
    nets += [made_up('mole', 0, [81.0, 84.0]), made_up('mole_dynas', 0, [72.0, 73.0])]
    for start, gains in (('', [4.0, 6.0]), ('_dynas', [3.0, 3.0])):
        bare = nets[1 if start else 0]['heldout']['top1']
        nets += [
            made_up(f'alone_whole{start}', 0, [top1 + gain], i)
            for i, (top1, gain) in enumerate(zip(bare, gains, strict=True))
        ]
    rows = {row['method']: row for row in cells(tables.top1_table(nets, [], 'heldout'))}
    assert rows['mole']['of upper bound, %'] == '10'  # 1 of 10
    assert rows['mole_dynas']['of upper bound, %'] == '50'  # 3 of 6
    assert rows['dynas']['of upper bound, %'] == ''
    found = [tables.supernet_of(name) for name in ('dynas', 'mole_dynas_x2', 'joint_start', 'mole')]
    assert found == ['dynas', 'dynas', 'autoformer', 'autoformer']
    points = {p.method: p for p in regime.points_of(nets, 'main')}
    assert set(points) == {'mole', 'mole_dynas', 'alone_whole', 'alone_whole_dynas'}
    assert points['mole_dynas'].gains == [2.0, 1.0]
    found = {row['method']: row for row in cells(regime.table(list(points.values())))}
    assert [found[m]['of upper bound, %'] for m in ('mole', 'mole_dynas')] == ['10', '50']
    assert found['mole']['visits of an expert'] == str(30 // 4)


def test_shares_are_over_what_both_have():
    nets = [made_up('autoformer', 0, [80.0, 84.0]), made_up('mole', 0, [81.0, 86.0])]
    nets += [made_up('autoformer', 1, [80.0, 84.0]), made_up('mole', 1, [89.0, 89.0])]
    nets.append(made_up('alone_whole', 0, [84.0], 0))
    rows = {row['method']: row for row in cells(tables.top1_table(nets, [], 'heldout'))}
    assert rows['mole']['of upper bound, %'] == '25'  # 1 of 4
    assert regime.points_of(nets, 'main')[0].share == '25'


def test_the_bound_is_the_one_of_usual_length_or_else_that_of_most_nets():
    nets = [made_up('autoformer', 0, [80.0, 84.0]), made_up('joint_start', 0, [81.0, 85.0])]
    bounds = {'_x2_lr0.1': [85.0], '_x2_lr0.2': [84.0, 88.0], '_x2': [83.0]}
    for family, tops in bounds.items():
        nets += [made_up(f'alone_whole{family}', 0, [top1], i) for i, top1 in enumerate(tops)]
    scores = tables.scores_of(nets, 'heldout')
    assert tables.bound_of(scores, 'autoformer') == 'alone_whole_x2_lr0.2'
    assert tables.share_of_bound(scores, 'joint_start') == '25'  # 2 of 8: from scratch, too
    assert tables.share_of_bound(scores, 'autoformer') == ''
    nets.append(made_up('alone_whole_x2', 0, [88.0], 1))
    assert tables.share_of_bound(tables.scores_of(nets, 'heldout'), 'joint_start') == ''  # of two
    nets.append(made_up('alone_whole', 0, [82.0], 0))
    scores = tables.scores_of(nets, 'heldout')
    assert tables.bound_of(scores, 'autoformer') == 'alone_whole'
    assert tables.share_of_bound(scores, 'joint_start') == '50'  # 1 of 2
    assert tables.bound_of(scores, 'dynas') == 'alone_whole_dynas'
    assert tables.share_of_bound(scores, 'mole_dynas') == ''


def test_gains_have_a_panel_for_each_supernet_and_the_largest_on_top(tmp_path):
    nets = [made_up('autoformer', 0, [80.0, 84.0]), made_up('autoformer', 1, [82.0, 83.0])]
    nets += [made_up('mole', 0, [81.0, 84.0]), made_up('mole', 1, [83.0, 85.0])]
    nets += [made_up('plus', 0, [80.0, 84.2]), made_up('mole_x2', 0, [83.0, 84.0])]
    nets += [made_up('alone_whole', 0, [86.0], 0), made_up('independent_same', 1, [86.0], 1)]
    nets += [made_up('dynas', 0, [70.0, 71.0]), made_up('mole_dynas', 0, [72.0, 73.0])]
    figure = figures.draw_gains(nets, 'heldout', tmp_path / 'gains.png')
    panels = {axes.get_title(): axes for axes in figure.axes}
    names = {
        title: [t.get_text() for t in a.get_yticklabels()][::-1] for title, a in panels.items()
    }
    assert names == {
        "AutoFormer's supernet": ['alone_whole', 'independent_same', 'mole', 'plus'],
        "AutoFormer's supernet, other lengths": ['mole_x2'],
        "DYNAS's supernet": ['mole_dynas'],
    }
    lines = panels["AutoFormer's supernet"].lines
    dots = [line.get_xdata() for line in lines if line.get_marker() == 'o']
    assert dots[1] == pytest.approx([0.5, 1.5])  # mole's seeds
    dashed = [line.get_xdata()[0] for line in lines if line.get_linestyle() == '--']
    assert dashed == [6.0]  # the upper bound, of the seed and subnet that it has


def test_experts_of_methods_and_spaces():
    assert regime.experts_of('full_finetune', 'nano') == 0
    assert regime.experts_of('single_lora', 'nano') == 1
    assert regime.experts_of('mole', 'nano') == 4
    assert regime.experts_of('mole', 'search') == 12


def drawn(axes) -> dict:
    """The lines of axes that have points, by their labels."""
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    return {label: points for label, points in lines.items() if points}


def test_regimes_are_drawn_over_what_is_varied(tmp_path):
    nets = [made_up('autoformer', 0, [80.0]), made_up('mole', 0, [81.0])]
    nets += [made_up('mole_x2', 0, [82.5]), made_up('alone_whole', 0, [84.0], 0)]
    nets[2]['iterations'] = 60
    shorter = [dict(net, iterations=15 if net['method'] == 'autoformer' else 30) for net in nets]
    tuned = [nets[0], dict(made_up('mole', 0, [79.0]), rate=0.1)]
    scratch = dict(made_up('independent_same', 0, [86.0], 0), delta_w=None, iterations=60)
    points = regime.points_of([*nets, scratch], 'main')
    points += regime.points_of(shorter, 'first_0.25')
    points += regime.points_of(tuned, 'tuning')
    axes = regime.draw(points, tmp_path / 'regimes.png').axes
    assert drawn(axes[0]) == dict(mole=[[30, 1.0], [60, 2.5]], alone_whole=[[30, 4.0]])
    alone = dict(alone_whole=[[15, 4.0], [60, 4.0]], independent_same=[[60, 6.0]])
    assert drawn(axes[1]) == dict(mole=[[15, 1.0], [60, 1.0]], **alone)
    assert drawn(axes[2]) == dict(mole=[[0.1, -1.0]])
    assert drawn(axes[4]) == {}  # no gates in these records
    assert drawn(axes[5]) == dict(mole=[[30, 0.5], [60, 0.5]])
    assert (tmp_path / 'regimes.png').read_bytes()[:4] == b'\x89PNG'
    rows = {row['method']: row for row in cells(regime.table(points[::-1]))}
    row = rows['independent_same']  # from scratch: one stage, nothing that its weights left
    assert (row['stage 1'], row['stage 2'], row['dW/W'], row['gain']) == ('60', '', '', '6.00')


def test_bounds_and_supernets_that_lack_give_no_share():
    nets = [made_up('autoformer', 0, [80.0]), made_up('mole', 0, [81.0])]
    nets.append(made_up('alone_whole', 0, [80.05], 0))
    points = regime.points_of(nets, 'main', None)
    assert [(p.share, p.experts) for p in points] == [('', None)] * 2
    assert cells(regime.table(points))[0]['of upper bound, %'] == ''
    assert regime.points_of(nets[1:], 'main') == []


# The weights that are kept.

WEIGHTS = PROJECT / 'weights'


def test_kept_weights_are_those_of_their_records():
    """The frozen part is the supernet; experts are as far from it as the record has it."""
    files = sorted(WEIGHTS.glob('*'))
    assert sum(path.stat().st_size for path in files) < 5e6
    bare, mole = (
        safetensors.torch.load_file(WEIGHTS / f'{name}.safetensors')
        for name in ('supernet', 'mole')
    )
    assert all(torch.equal(mole[name], weight) for name, weight in bare.items())
    model = apis.load_supernet(PROJECT / 'configs' / 'search.py', WEIGHTS / 'mole.safetensors')
    record = Records(PROJECT / 'results' / 'search').read('mole_seed0')
    fresh = apis.load_supernet(PROJECT / 'configs' / 'search.py', WEIGHTS / 'supernet.safetensors')
    found = [
        measure.relative_change(*(measure.weights_in_use(m, subnet) for m in (fresh, model)))
        for subnet in edits.drawn_subnets('search')
    ]
    assert found == pytest.approx(record['delta_w'], abs=1e-4)
    assert min(found) > 0.01
