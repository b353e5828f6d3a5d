"""Draw the figures of the documentation: python docs/drawings.py.

Writes ``docs/images/NAME.svg`` and ``NAME-dark.svg``. Coordinates are pixels from the top left.
"""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

FOLDER = Path(__file__).parent / 'images'
LIGHT = dict(
    ink='#1f2933',
    soft='#5f6b7a',
    line='#9aa5b1',
    frozen='#dfe4ea',
    slice='#3b7dd8',
    pale='#d6e5f8',
    expert='#e08a2c',
    sand='#fae6cf',
    router='#2f9474',
    mint='#d3eee4',
    page='#ffffff',
)
DARK = dict(
    ink='#e6eaf0',
    soft='#a7b1c2',
    line='#6b778c',
    frozen='#3d4454',
    slice='#6ba4f0',
    pale='#2b4468',
    expert='#f0a550',
    sand='#5a4226',
    router='#5cc4a1',
    mint='#1f4d40',
    page='#1e2129',
)
# Gates of one layer that is steered to expert 2 of 4.
GATES = (0.12, 0.64, 0.09, 0.15)


class Canvas:
    """A page of ``width`` x ``height`` pixels in the colours of a theme."""

    def __init__(self, width: int, height: int, theme: dict):
        self.theme = theme
        self.figure = plt.figure(figsize=(width / 100, height / 100), dpi=100)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.axis('off')

    def colour(self, name: str) -> str:
        """A colour of the theme."""
        return self.theme[name]

    def text(self, x, y, words, size=11, colour='ink', align='center', **kwargs) -> None:
        """Words around (x, y)."""
        kwargs.setdefault('va', 'center')
        self.axes.text(x, y, words, size=size, color=self.colour(colour), ha=align, **kwargs)

    def block(self, x, y, width, height, fill, edge=None, **kwargs) -> None:
        """A rectangle with sharp corners."""
        edge = self.colour(edge) if edge else 'none'
        kwargs.setdefault('lw', 1.2)
        patch = Rectangle((x, y), width, height, fc=self.colour(fill), ec=edge, **kwargs)
        self.axes.add_patch(patch)

    def box(self, x, y, width, height, fill, edge, words='', size=11, **kwargs) -> None:
        """A rectangle with round corners, with words in it."""
        style = 'round,pad=0,rounding_size=7'
        fill = self.colour(fill) if fill else 'none'
        edge = self.colour(edge)
        shape = FancyBboxPatch(
            (x, y), width, height, boxstyle=style, fc=fill, ec=edge, lw=1.3, **kwargs
        )
        self.axes.add_patch(shape)
        self.text(x + width / 2, y + height / 2, words, size)

    def arrow(self, start, end, colour='soft', bend=0.0, width=1.5) -> None:
        """An arrow from one point to another."""
        shape = FancyArrowPatch(
            start,
            end,
            arrowstyle='-|>,head_length=6,head_width=3.5',
            connectionstyle=f'arc3,rad={bend}',
            color=self.colour(colour),
            lw=width,
            shrinkA=0,
            shrinkB=0,
        )
        self.axes.add_patch(shape)

    def line(self, xs, ys, colour='line', **kwargs) -> None:
        """A line through points."""
        kwargs.setdefault('lw', 1.3)
        self.axes.plot(xs, ys, color=self.colour(colour), **kwargs)

    def weight(self, x, y, size, width, height, fill='pale', edge='slice') -> None:
        """A square weight of the supernet, frozen, with a slice of it."""
        self.block(x, y, size, size, 'frozen', 'line')
        self.block(x, y, width, height, fill, edge, lw=1.8)

    def expert(self, x, y, height, width, thick=8) -> None:
        """The two low-rank factors of an expert: U, tall, and D, wide."""
        self.block(x, y, thick, height, 'expert')
        self.block(x + thick + 4, y, width, thick, 'expert')

    def gates(self, x, y, values, height=44, step=18) -> None:
        """Bars for the gates of a layer, standing on y."""
        for i, value in enumerate(values):
            tall = value * height / 0.7
            self.block(x + i * step, y - tall, step - 6, tall, 'router')
        self.line((x - 3, x + len(values) * step - 3), (y, y), 'soft', lw=1)

    def save(self, name: str) -> None:
        """Write the page."""
        self.figure.savefig(
            FOLDER / f'{name}.svg', transparent=True, metadata=dict(Date=None, Creator=None)
        )
        plt.close(self.figure)


def subnet(page: Canvas, x: float, y: float, widths, step=24, full=120) -> None:
    """A subnet as a stack of blocks, each as wide as its MLP, in the outline of the supernet."""
    for i, width in enumerate(widths):
        top = y + i * step
        page.block(x, top, full, step - 7, 'page', 'line', lw=0.9, ls=(0, (3, 3)))
        if width:
            page.block(x + (full - width) / 2, top, width, step - 7, 'pale', 'slice')


def method(theme: dict) -> Canvas:
    """The whole method on one page."""
    page = Canvas(1000, 500, theme)
    _architecture(page)
    _mixing(page)
    _merging(page)
    _stages(page)
    return page


def _architecture(page: Canvas) -> None:
    page.text(100, 26, 'A subnet', 13, weight='bold')
    page.text(100, 48, 'width, depth, heads, MLP', 10, 'soft')
    subnet(page, 40, 124, (86, 104, 86, 104, 0))
    page.arrow((170, 142), (248, 118), 'router')
    page.text(204, 112, 'is read', 10.5, 'router')
    page.arrow((170, 206), (266, 248), 'slice')
    page.text(192, 246, 'is sliced', 10.5, 'slice')


def _mixing(page: Canvas) -> None:
    page.text(385, 26, 'Router and experts', 13, weight='bold')
    page.text(385, 48, 'trained in stage 2', 10, 'soft')
    page.box(256, 84, 96, 56, 'mint', 'router', 'Router\n(LSTM)', 11)
    page.arrow((356, 112), (386, 112), 'router')
    page.gates(394, 138, GATES)
    page.text(427, 156, 'gates $p_k$', 10.5, 'router')
    page.arrow((474, 112), (508, 112), 'router')
    for i, gate in enumerate(GATES):
        x = 520 + i * 58
        page.expert(x, 88, 48, 34)
        page.text(x + 29, 118, f'{gate:.2f}', 10, 'router')
    page.text(632, 156, r'K low-rank experts $U_k D_k$', 10.5, 'expert')


def _merging(page: Canvas) -> None:
    page.weight(278, 220, 130, 92, 92)
    page.text(324, 266, 'W', 15, style='italic')
    page.text(343, 372, 'Supernet', 13, weight='bold')
    page.text(343, 392, 'trained in stage 1, then frozen', 10, 'soft')
    page.text(442, 268, '+', 22)
    page.block(476, 220, 92, 92, 'sand', 'expert', lw=1.8)
    page.text(522, 266, r'$\Sigma_k\, p_k U_k D_k$', 12)
    page.text(522, 330, 'mixed for this subnet', 10, 'soft')
    page.arrow((632, 174), (560, 214), 'expert', bend=-0.2)
    page.text(602, 266, '=', 22)
    page.block(636, 220, 92, 92, 'sand', 'slice', lw=2.2)
    page.text(682, 266, "W'", 15, style='italic')
    page.text(682, 330, 'merged before use', 10, 'soft')
    page.arrow((738, 266), (790, 266))
    page.text(880, 168, 'A network of its own', 13, weight='bold')
    page.text(880, 190, 'an ordinary vision transformer', 10, 'soft')
    for i, width in enumerate((86, 104, 86, 104)):
        page.block(880 - width / 2, 218 + i * 24, width, 17, 'sand', 'slice', lw=1.6)
    page.text(880, 340, 'nothing is added\nat inference', 10, 'soft', linespacing=1.5)


def _stages(page: Canvas) -> None:
    stages = (
        ('1', 'Train the supernet', 'one random slice a step'),
        ('2', 'Train the experts', 'and router, W is frozen'),
        ('3', 'Search', 'on held-out images'),
        ('4', 'Export', 'the best one, merged'),
    )
    for i, (number, title, note) in enumerate(stages):
        x = 15 + i * 247
        page.box(x, 430, 221, 56, None, 'line')
        page.text(x + 20, 458, number, 18, 'slice', weight='bold')
        page.text(x + 40, 448, title, 11, align='left', weight='bold')
        page.text(x + 40, 469, note, 10, 'soft', align='left')
        if i < 3:
            page.arrow((x + 224, 458), (x + 244, 458))


def linear(theme: dict) -> Canvas:
    """A linear layer with experts, left as it is defined, right as it is computed."""
    page = Canvas(900, 376, theme)
    page.text(245, 24, 'What the layer means', 13, weight='bold')
    page.text(40, 186, 'x', 15, style='italic')
    rows = (78, 164, 220, 304)
    page.weight(170, 50, 76, 56, 56)
    page.text(198, 78, 'W', 13, style='italic')
    for k, y in enumerate(rows[1:]):
        page.block(150, y - 5, 56, 10, 'expert')
        page.block(222, y - 24, 10, 48, 'expert')
        name = '12K'[k]
        page.text(178, y - 16, f'$D_{name}$', 11, 'expert')
        page.text(246, y - 12, f'$U_{name}$', 11, 'expert')
        page.box(282, y - 15, 44, 30, 'mint', 'router', f'$p_{name}$', 11)
        page.arrow((258, y), (280, y))
    for y in rows:
        page.line((54, 84, 84), (186, 186, y), 'line')
        page.arrow((84, y), (144 if y > 100 else 164, y), 'line')
        page.arrow((330 if y > 100 else 252, y), (384, 186 + (y - 180) * 0.13), 'line')
    page.text(178, 258, '. . .', 13, 'soft', rotation=90)
    page.box(386, 168, 36, 36, None, 'ink', '+', 15)
    page.arrow((424, 186), (452, 186))
    page.text(466, 186, 'y', 15, style='italic')
    page.text(245, 350, r'$y = W x + \Sigma_k\; p_k U_k D_k x\,/\,r$', 12)
    page.line((500, 500), (50, 330), 'line', lw=1, ls=(0, (3, 3)))
    page.text(700, 24, 'What is computed', 13, weight='bold')
    page.text(560, 150, 'x', 15, style='italic')
    page.arrow((576, 150), (634, 150), 'line')
    page.block(644, 94, 112, 112, 'sand', 'slice', lw=2.2)
    page.text(700, 150, "W'", 17, style='italic')
    page.arrow((766, 150), (820, 150), 'line')
    page.text(836, 150, 'y', 15, style='italic')
    page.text(700, 250, r"$W' = W + \Sigma_k\; p_k U_k D_k\,/\,r$", 12)
    page.text(
        700,
        300,
        'once for a subnet, not for each image:\nthe gates depend on the architecture alone',
        10.5,
        'soft',
        linespacing=1.5,
    )
    return page


def router(theme: dict) -> Canvas:
    """The LSTM that reads a subnet block by block."""
    page = Canvas(900, 430, theme)
    rows = dict(
        reads=('what it reads', 'of each block'),
        steps=('LSTM', 'one step a block'),
        heads=('router head', 'of the block’s group'),
        gates=('gates', '4 layers × K experts'),
    )
    for y, (title, note) in zip((62, 156, 250, 352), rows.values(), strict=True):
        page.text(20, y - 8, title, 12, align='left', weight='bold')
        page.text(20, y + 12, note, 10, 'soft', align='left')
    blocks = ((3, 4, 216), (4, 3.5, 216), (3, 3.5, 216))
    rng = np.random.default_rng(1)
    for b, (heads, ratio, width) in enumerate(blocks):
        x = 210 + b * 230
        words = f'heads {heads}   MLP {ratio}\nwidth {width}'
        page.box(x, 36, 150, 52, 'pale', 'slice', words, 10.5)
        page.box(x + 25, 132, 100, 48, 'mint', 'router', 'LSTM', 11.5)
        page.box(x + 10, 228, 130, 44, None, 'router', f'head of group {(5, 10, 4)[b]}', 10.5)
        page.arrow((x + 75, 91), (x + 75, 129))
        page.arrow((x + 75, 183), (x + 75, 225))
        page.arrow((x + 75, 275), (x + 75, 311))
        if b < 2:
            page.arrow((x + 128, 156), (x + 252, 156))
        _gate_rows(page, x - 3, 316, (5, 10, 4)[b] - 1, rng)
        page.text(x + 75, 412, f'block {b + 1}', 10.5, 'soft')
    return page


def _gate_rows(page: Canvas, x: float, y: float, favourite: int, rng) -> None:
    """Gates of the four layers of a block, the darkest at the group's own expert."""
    for row in range(4):
        for k in range(12):
            value = 0.75 if k == favourite else 0.03 + 0.12 * rng.random()
            page.block(x + k * 13, y + row * 20, 12, 18, 'frozen')
            page.block(x + k * 13, y + row * 20, 12, 18, 'router', alpha=value)


def race(theme: dict) -> Canvas:
    """A race of seven candidates over slices of the held-out images; a sketch."""
    page = Canvas(900, 400, theme)
    losses = np.array([0.42, 0.45, 0.50, 0.57, 0.63, 0.70, 0.78])
    seen = np.array([500, 1250, 2375, 4063, 6594, 10000])
    rng = np.random.default_rng(4)
    alive = np.ones(len(losses), bool)
    axes = page.figure.add_axes((0.06, 0.15, 0.62, 0.78), facecolor='none')
    bars = []
    for step, images in enumerate(seen):
        error = 2.3 / np.sqrt(images) * np.sqrt(1 - images / seen[-1])
        means = losses + rng.normal(0, error / 3, len(losses))
        bar = np.sort(means[alive] + error)[2]
        bars.append(bar)
        dropped = alive & (means - error > bar)
        for i in np.flatnonzero(alive):
            colour = page.colour('line' if dropped[i] else 'slice')
            x = step + (i - 3) * 0.09
            axes.plot((x, x), (means[i] - error, means[i] + error), color=colour, lw=2.2)
            axes.plot(x, means[i], 'x' if dropped[i] else 'o', color=colour, ms=6, mew=2)
        alive &= ~dropped
    colour = page.colour('expert')
    axes.step(np.arange(-0.5, 6), [*bars, bars[-1]], where='post', color=colour, lw=1.8, zorder=1)
    _label_race(page, axes, seen)
    return page


def _label_race(page: Canvas, axes, seen) -> None:
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)
    for side in ('left', 'bottom'):
        axes.spines[side].set_color(page.colour('line'))
    axes.set_xticks(range(len(seen)), [f'{images:,}' for images in seen])
    axes.set_yticks([])
    axes.tick_params(colors=page.colour('soft'), labelsize=10.5)
    axes.set_xlabel('held-out images seen', color=page.colour('ink'), size=11)
    axes.set_ylabel('estimated loss', color=page.colour('ink'), size=11)
    axes.set_xlim(-0.5, 5.5)
    notes = (
        ('expert', '—', 'the bar: worst of the best\n(here three), upper ends'),
        ('slice', '●', 'a candidate: estimate and\nthree standard errors a side'),
        ('line', '×', 'dropped: the whole interval\nlies above the bar'),
    )
    for i, (colour, mark, words) in enumerate(notes):
        page.text(640, 90 + i * 74, mark, 15, colour)
        page.text(658, 90 + i * 74, words, 10, align='left', linespacing=1.4)


def task(theme: dict) -> Canvas:
    """The way of a task through the files, and of its outcome back through the same calls."""
    page = Canvas(960, 190, theme)
    rooms = (
        ('evolution.py', 'breeds', 'pale', 'slice'),
        ('scorer.py', 'makes the task', 'pale', 'slice'),
        ('records.py', 'recalls it, if known', 'pale', 'slice'),
        ('ray_executor.py', 'finds a free worker', 'pale', 'slice'),
        ('worker.py', 'holds the model', 'mint', 'router'),
        ('candidate_evaluator.py', 'evaluates', 'mint', 'router'),
    )
    for place, (file, does, fill, edge) in enumerate(rooms):
        x = 10 + 160 * place
        page.box(x, 60, 136, 62, fill, edge)
        page.text(x + 68, 80, file, 8.5 if len(file) < 20 else 7.6)
        page.text(x + 68, 102, does, 8.5, 'soft')
        if place:
            page.arrow((x - 24, 78), (x, 78), 'expert')
            page.arrow((x, 104), (x - 24, 104))
    page.text(10, 30, 'the process of the search', 11, 'slice', align='left')
    page.text(650, 30, 'a worker, on any machine', 11, 'router', align='left')
    page.text(10, 155, 'upper arrows: subnet, then task', 10, 'expert', align='left')
    page.text(290, 155, 'lower arrows: outcome, then score', 10, 'soft', align='left')
    return page


def main():
    """Draw all figures in both themes."""
    mpl.rcParams.update({'svg.fonttype': 'path', 'svg.hashsalt': 'tas-lora'})
    FOLDER.mkdir(exist_ok=True)
    for draw in (method, linear, router, race, task):
        draw(LIGHT).save(draw.__name__)
        draw(DARK).save(f'{draw.__name__}-dark')


if __name__ == '__main__':
    main()
