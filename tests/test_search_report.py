"""The report page of a search: its numbers match the files, and a browser shows it."""

import json
import re
import shutil
import struct
import subprocess
from html.parser import HTMLParser
from math import nan

import numpy as np
import pytest
from conftest import call_tool
from hypothesis import given
from hypothesis import strategies as st
from tiny import SPACE, SPACE_DICT, repeatable

from tas_lora import UserError, count_params
from tas_lora.report.drawing import as_svg, canvas, style
from tas_lora.report.figures import best_so_far, front_of, shares
from tas_lora.report.page import write_report
from tas_lora.report.results import Candidate, SearchResults

IMAGES = 1000
BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
VOID = {'meta', 'br', 'img', 'link', 'hr'}


class Page(HTMLParser):
    """Text by heading, table rows, addresses, and whether all elements are closed."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.rows, self.addresses, self.ids, self.svgs = [], [], [], [], 0
        self.sections, self.tags, self.labels = {'': ''}, set(), []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        self.ids += [attrs['id']] if 'id' in attrs else []
        self.labels += [attrs['aria-label']] if attrs.get('role') == 'img' else []
        self.addresses += [v for k, v in attrs.items() if k.split(':')[-1] in ('href', 'src')]
        if tag not in VOID:
            self.open.append(tag)
        if tag == 'tr':
            self.rows.append([])
        if tag in ('td', 'th'):
            self.rows[-1].append('')
        if tag in ('h1', 'h2'):
            self.heading = ''

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ('h1', 'h2'):
            self.sections[self.heading.strip()] = ''

    def handle_data(self, data):
        if {'style', 'svg'} & set(self.open):
            return
        data = data.replace('\N{NO-BREAK SPACE}', ' ')
        if {'h1', 'h2'} & set(self.open):
            self.heading += data
        elif {'td', 'th'} & set(self.open):
            self.rows[-1][-1] += data
        else:
            *_, last = self.sections
            self.sections[last] += ' '.join(data.split()) + ' '

    @property
    def heading_1(self) -> str:
        return list(self.sections)[1]

    def text(self) -> str:
        return ' '.join(self.sections.values())


def line_of(subnet, score, **others) -> dict:
    costs = dict(params=count_params(subnet), flops=1.5e9)
    line = dict(phase='search', generation=0, precision='float32', images=IMAGES, error=0.0)
    return line | costs | dict(subnet=subnet.to_dict(), cross_entropy=score) | others


def some_subnets(count: int, seed: int = 0) -> list:
    rng = np.random.default_rng(seed)
    return list(dict.fromkeys(SPACE.sample(rng) for _ in range(20 * count)))[:count]


def history(count: int = 30) -> list[dict]:
    """A search of three generations, a random search, candidates dropped and out of memory."""
    scores = np.random.default_rng(1).uniform(1, 2, 2 * count).round(6)
    lines = [
        line_of(subnet, scores[i], generation=i * 3 // count)
        for i, subnet in enumerate(some_subnets(count))
    ]
    lines[3] |= dict(images=100, error=0.01, cross_entropy=0.5)  # an estimate, which cannot win
    lines[4] |= dict(images=0, cross_entropy=nan)
    del lines[5]['cross_entropy']
    random = [
        line_of(subnet, scores[count + i] + 0.5, phase='baseline')
        for i, subnet in enumerate(some_subnets(count, seed=5))
    ]
    return lines + random


def whole_scores(lines: list[dict]) -> list[float]:
    searched = [x for x in lines if x['phase'] == 'search' and x['images'] == IMAGES]
    return [x['cross_entropy'] for x in searched if 'cross_entropy' in x]


def best_line(lines: list[dict], phase: str = 'search') -> dict:
    whole = [x for x in lines if x['phase'] == phase and x['images'] == IMAGES]
    return min((x for x in whole if 'cross_entropy' in x), key=lambda x: x['cross_entropy'])


def result(lines: list[dict], **others) -> dict:
    val_cfg = dict(
        space=SPACE_DICT, constraints=dict(params=[None, 6e6]), evolution=dict(seed=1234)
    )
    identity = dict(
        checkpoint='runs/<b>&.pth',
        checkpoint_sha256='c0ffee' * 10,
        command=['tools/search.py', 'my config.py'],
        versions=dict(numpy='7.8.9', pymoo=None),
        config=dict(val_cfg=val_cfg),
    )
    return best_line(lines) | dict(
        score='cross_entropy',
        rule='less',
        candidates=4321,
        images_evaluated=2500,
        images_exhaustive=10000,
        parents=5,
        goals=[],
        baseline=best_line(lines, 'baseline'),
        test=dict(found={'accuracy/top1': 71.125}),
        search=identity,
        **others,
    )


def fill(folder, lines, **files):
    """Write a work directory of a search."""
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (folder / 'search_history.jsonl').write_text(text)
    for name, content in files.items():
        (folder / f'{name}.json').write_text(json.dumps(content))
    return folder


def page_of(folder, *arguments) -> Page:
    return Page(write_report(folder, *arguments).read_text())


def fill_all(folder):
    """A work directory with every file that a search may leave."""
    lines = history()
    gates = {f'block {i} {n}': [0.25, 0.5, 0.25] for i in range(2) for n in ('qkv', 'fc1')}
    workers = [dict(worker=n, host=f'node{n}', tasks=1000 + n, busy=0.5 + n / 8) for n in range(3)]
    cost = dict(seconds=8100.0, images_per_second=1234.5, processes=3, retries=2, workers=workers)
    return fill(folder, lines, best_subnet=result(lines), gates=gates, search_cost=cost)


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    """The page of such a search."""
    return write_report(fill_all(tmp_path_factory.mktemp('search')))


def test_numbers_are_those_of_the_files(report):
    page, best = Page(report.read_text()), best_line(history())
    subnet = best['subnet']
    depth, width = len(subnet['num_heads']), subnet['embed_dim']
    assert page.heading_1.startswith(f'Winner: {depth} blocks, {width} wide, ')
    top = page.sections[page.heading_1]
    for text in (
        f'{best["cross_entropy"]:.4f} on 1,000 held-out images',
        f'{best["params"] / 1e3:.2f} k parameters (limit: at most 6 M), 1.500 G FLOPs.',
        '4,321',
        '25.0%',
        '2 h 15 min',
        '1,234',
    ):
        assert text in top
    assert '3' in page.sections['What the run cost'].split()
    assert ['2', 'node2', '1,002', '75%'] in page.rows
    repeat = page.sections['How to repeat it']
    for text in ('1234', 'runs/<b>&.pth', 'c0ffee' * 10, "'my config.py'", '7.8.9'):
        assert text in repeat
    assert ['found', '71.125'] in page.rows


def test_table_ranks_complete_candidates(report):
    rows = [row for row in Page(report.read_text()).rows if row[0].isdigit() and len(row) > 4]
    by_score = {x.get('cross_entropy'): x for x in history()[:30]}
    best = [by_score[score] for score in sorted(whole_scores(history()))[:10]]
    assert [float(row[1]) for row in rows] == [round(x['cross_entropy'], 4) for x in best]
    for row, line in zip(rows, best, strict=True):
        heads, ratios = line['subnet']['num_heads'], line['subnet']['mlp_ratio']
        assert row[4:] == [
            str(line['subnet']['embed_dim']),
            str(len(heads)),
            ' '.join(map(str, heads)),
            ' '.join(f'{ratio:g}' for ratio in ratios) + ' ',
            '1,000',
        ]


def test_page_is_whole_and_needs_no_network(report):
    text = report.read_text()
    page = Page(text)
    assert not {'script', 'link', 'iframe'} & page.tags
    assert all(address.startswith(('#', 'data:')) for address in page.addresses)
    spaces = {'http://www.w3.org/2000/svg', 'http://www.w3.org/1999/xlink'}
    assert set(re.findall(r'https?://[^"\'<\s)]*', text)) <= spaces
    assert not re.search(r'@import|@font-face|url\((?!#)', text)
    assert len(page.ids) == len(set(page.ids))
    targets = {address[1:] for address in page.addresses if address.startswith('#')}
    assert targets <= set(page.ids)
    assert len(page.labels) == 6
    assert all(page.labels)


def test_figures_are_images_of_at_least_120_dpi(report):
    files = {path.stem: path.read_bytes() for path in (report.parent / 'figures').iterdir()}
    costs = {'score_against_params', 'score_against_flops'}
    assert set(files) == costs | {'progress', 'choices', 'positions', 'gates'}
    for content in files.values():
        place = content.index(b'pHYs') + 4
        assert struct.unpack('>II', content[place : place + 8]) >= (4724, 4724)  # dots a metre


def test_everything_is_escaped(tmp_path):
    folder = tmp_path / 'a<script>b'
    folder.mkdir()
    metric = 'a<script>$x_"&'
    lines = [{**x, metric: x.get('cross_entropy', nan)} for x in history()]
    gates = {'<script>': [0.5, 0.5]}
    fill(folder, lines, best_subnet=result(lines) | dict(score=metric), gates=gates)
    text = write_report(folder).read_text()
    assert '<script' not in text
    assert any(metric in row for row in Page(text).rows)
    assert 'a&lt;script&gt;$x_' in text[text.index('<svg') :]


def test_history_alone(tmp_path):
    lines = [{k: v for k, v in x.items() if k not in ('phase', 'images')} for x in history()[:20]]
    page = page_of(fill(tmp_path, [x for x in lines if x.get('cross_entropy') != 0.5]))
    assert page.heading_1.startswith('Best so far: ')
    assert 'There is no result yet' in page.text()
    assert not {'Against random search', 'What the run cost', 'How to repeat it'} & {*page.sections}


def test_running_search_is_read_by_its_config(tmp_path):
    lines = [x | dict(top1=-x.get('cross_entropy', nan)) for x in history()]
    val_cfg = dict(score='top1', rule='greater', constraints=dict(params=[1e3, None]))
    identity = dict(config=dict(val_cfg=val_cfg), command=['again'])
    page = page_of(fill(tmp_path, lines, search=identity))
    top = page.sections[page.heading_1]
    assert f'top1 -{best_line(lines)["cross_entropy"]:.4f}' in top.replace(' .', '.')
    assert 'limit: at least 1 k' in top
    assert 'again' in page.sections['How to repeat it']


def test_one_candidate(tmp_path):
    page = page_of(fill(tmp_path, [line_of(SPACE.smallest(), 1.25)]))
    assert '1.2500' in page.sections[page.heading_1]


def test_winners_scored_again_come_first(tmp_path):
    lines = history()
    second = sorted(whole_scores(lines))[1]
    again = next(x for x in lines if x.get('cross_entropy') == second)
    random = best_line(lines, 'baseline') | dict(phase='finals', generation=1, cross_entropy=0.1)
    finals = [again | dict(phase='finals', generation=0, cross_entropy=1.75), random]
    page = page_of(fill(tmp_path, lines + finals))
    scores = [float(row[1]) for row in page.rows if row[0].isdigit()]
    assert scores[0] == 1.75
    assert round(second, 4) not in scores
    assert scores[1:] == sorted(scores[1:])
    assert 'The first was scored again in float32' in page.text()


@pytest.mark.parametrize(
    ('other', 'expected'),
    [
        (2.0, 'The search beats the best of as many random draws by 1 (50.0%)'),
        (0.5, 'Random draws won by 0.5 (100.0%): the search has cross_entropy 1.0000 against 0.50'),
        (1.0, 'A tie: cross_entropy 1.0000 against 1.0000'),
    ],
)
def test_comparison_with_random_search(tmp_path, other, expected):
    subnets = some_subnets(2)
    lines = [line_of(subnets[0], 1.0), line_of(subnets[1], other, phase='baseline')]
    page = page_of(fill(tmp_path, lines))
    assert expected in page.sections['Against random search']


def test_same_subnet_by_random_search(tmp_path):
    line = line_of(SPACE.smallest(), 1.0)
    page = page_of(fill(tmp_path, [line, line | dict(phase='baseline')]))
    assert 'found the same subnet' in page.sections['Against random search']


def test_goals(tmp_path):
    lines = history()
    for place, line in enumerate(lines):
        line['latency'] = 2.0 + place / 8
    front = [line | dict(knee=place == 1) for place, line in enumerate(lines[:3])]
    best = result(lines) | dict(goals=['params', 'latency'])
    page = page_of(fill(tmp_path, lines, best_subnet=best, front=front))
    said = page.sections['Trade-offs']
    assert '3 candidates that none beats in cross_entropy, params, latency together' in said
    knee = next(row for row in page.rows if row[0].isdigit())
    assert knee[1] == f'{lines[1]["cross_entropy"]:.4f}'
    assert knee[4] == '2.125 ms'
    assert (tmp_path / 'figures' / 'score_against_latency.png').exists()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20))
@repeatable
def test_front_is_what_nothing_dominates(points):
    candidates = tuple(Candidate(SPACE.smallest(), float(y), dict(params=x)) for x, y in points)
    results = SearchResults(None, 'score', 'less', candidates, {}, {}, (), {}, {})
    front = {(c.numbers['params'], c.score) for c in front_of(results, 'params')}
    expected = {
        (x, y)
        for x, y in points
        if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)
    }
    assert front == expected


@given(st.lists(st.tuples(st.floats(-9, 9) | st.just(nan), st.booleans())))
@repeatable
def test_best_so_far_skips_estimates(scores):
    candidates = [Candidate(SPACE.smallest(), s, {}, is_complete=whole) for s, whole in scores]
    for rule, choose in (('less', min), ('greater', max)):
        results = SearchResults(None, 'score', rule, tuple(candidates), {}, {}, (), {}, {})
        for place, best in enumerate(best_so_far(results, candidates), 1):
            known = [s for s, whole in scores[:place] if whole and s == s]
            np.testing.assert_equal(best, choose(known) if known else nan)


def test_shares():
    assert shares([3, 4, 4, 4], (2, 3, 4)) == [0, 0.25, 0.75]
    assert shares([], (2, 3)) == [0, 0]


def test_svg_takes_the_colours_of_the_page():
    with style():
        figure, (axes,) = canvas(3, 2)
        axes.set_xlabel('x')
        text = as_svg(figure, 'name')
    assert 'currentColor' in text
    assert '#000000' not in text
    assert re.findall(r'<svg[^>]* (?:width|height)=', text) == []


def spoiled(name: str, content: str):
    def spoil(folder):
        (folder / name).write_text(content)

    return spoil


@pytest.mark.parametrize(
    ('spoil', 'expected'),
    [
        (lambda folder: (folder / 'search_history.jsonl').unlink(), 'cannot be read'),
        (spoiled('search_history.jsonl', 'no\n{}\n'), 'line 1 is damaged'),
        (spoiled('search_history.jsonl', '{"subnet": {}}\n'), 'search_history.jsonl, 1: a subnet'),
        (spoiled('best_subnet.json', '{"subnet"'), 'best_subnet.json is not JSON'),
        (spoiled('best_subnet.json', '[1]'), 'best_subnet.json must hold a dict'),
        (spoiled('best_subnet.json', '{"subnet": 3}'), 'best_subnet.json: a subnet is a dict'),
        (spoiled('best_subnet.json', '{"parents": "all"}'), 'parents must be an integer'),
        (spoiled('best_subnet.json', '{"test": [1]}'), 'it is not as a search writes it'),
        (spoiled('best_subnet.json', '{"rule": "most"}'), 'the rule must be'),
        (spoiled('best_subnet.json', '{"search": [1]}'), 'by which config'),
        (spoiled('best_subnet.json', '{"score": "speed"}'), "no candidate has a 'speed'"),
        (spoiled('front.json', '{"a": 1}'), 'front.json must hold a list'),
        (spoiled('front.json', '[3]'), 'front.json, 1: a candidate must be a dict'),
        (spoiled('gates.json', '{"a": "b"}'), "gates.json: 'a' must hold numbers"),
        (spoiled('gates.json', '{"a": [1], "b": [1, 2]}'), 'differ in their number of experts'),
        (
            spoiled('search_cost.json', '{"seconds": "long"}'),
            "'seconds' must hold numbers",
        ),
        (
            spoiled('search_cost.json', '{"workers": [{"worker": 0}]}'),
            "workers are not as a search writes them: KeyError: 'host'",
        ),
        (
            spoiled(
                'search_cost.json',
                '{"workers": [{"worker": 0, "host": "a", "tasks": 1, "busy": 2}]}',
            ),
            'busy must be',
        ),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path, spoil, expected):
    spoil(fill_all(tmp_path))
    with pytest.raises(UserError, match=re.escape(expected)) as caught:
        write_report(tmp_path)
    assert '\n' not in str(caught.value)
    assert not (tmp_path / 'report.html').exists()


def test_tool(capsys, tmp_path):
    fill(tmp_path, history()[:3])
    assert call_tool('analysis/search_report.py', tmp_path) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / 'report.html')
    assert call_tool('analysis/search_report.py', tmp_path / 'nothing') == 2
    assert capsys.readouterr().err.startswith('error: search history')


CHECK = """<script>window.onload = () => {
  const box = e => e.getBoundingClientRect();
  const sizes = [...document.querySelectorAll('svg, img')].map(
    e => [box(e).width, box(e).height, e.querySelectorAll('path, use').length]);
  const overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  document.body.dataset.check = JSON.stringify({sizes, overflow});
}</script></body>"""


def browse(page, tmp_path, width: int) -> tuple[str, str]:
    """The document as a browser made it, and what its console said."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f'no browser is installed: {", ".join(BROWSERS)}')
    flags = ['--headless', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr']
    options = [f'--user-data-dir={tmp_path / "profile"}', f'--window-size={width},900']
    command = [browser, *flags, *options, '--dump-dom', page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout, '\n'.join(x for x in done.stderr.splitlines() if 'CONSOLE' in x)


@pytest.mark.full
def test_browser_shows_all_figures(report, tmp_path):
    assert browse(report, tmp_path, 1100)[1] == ''  # with the page's ban on the network
    text = re.sub('<meta http-equiv[^>]*>', '', report.read_text())
    checked = tmp_path / 'checked.html'
    for width in (1100, 500):
        checked.write_text(text.replace('</body>', CHECK))
        document, said = browse(checked, tmp_path, width)
        assert said == ''
        found = json.loads(re.search('data-check="([^"]*)"', document)[1].replace('&quot;', '"'))
        assert len(found['sizes']) >= 6
        assert all(w > 200 and h > 100 and drawn > 10 for w, h, drawn in found['sizes'])
        assert found['overflow'] == 0


@pytest.mark.full
def test_browser_notices_what_is_broken(tmp_path):
    page = tmp_path / 'broken.html'
    head = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'">"""
    page.write_text(f'<!DOCTYPE html>{head}<body><img src="https://example.invalid/a.png"></body>')
    assert 'Content Security Policy' in browse(page, tmp_path, 500)[1]
