"""What a search left in its work directory, read for a report; no torch."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import inf, isfinite, nan
from pathlib import Path
from reprlib import repr as short

from ..checks import inside, natural, one_of
from ..errors import UserError, blame
from ..provenance import read_json
from ..search import read_history
from ..structures import SearchSpace, Subnet

COSTS = ('params', 'flops', 'latency', 'memory')  # those that a line of the history may have


@dataclass(frozen=True)
class Candidate:
    """One subnet that a search scored.

    Attributes:
        subnet: The architecture.
        score: Value of the search's metric; NaN if it has none, as after running out of memory.
        numbers: Costs (see ``COSTS``) and all other numbers of its line, by name.
        generation: From 0, within its phase; of 'finals', 1 is the random search's.
        phase: 'search', 'baseline' (a random search) or 'finals' (the winners scored again).
        images: Held-out images it was evaluated on; None if that was not written down.
        is_complete: Whether these are all images, so that the score is no estimate.
        is_knee: Whether it was marked as a knee of the front.
    """

    subnet: Subnet
    score: float
    numbers: Mapping[str, float]
    generation: int = 0
    phase: str = 'search'
    images: int | None = None
    is_complete: bool = True
    is_knee: bool = False


@dataclass(frozen=True)
class SearchResults:
    """A search, finished or not.

    Attributes:
        folder: The work directory.
        score: Name of the metric that candidates are ranked by.
        rule: 'less' or 'greater': which of two scores is the better one.
        candidates: All lines of the history, in order.
        best: ``best_subnet.json``, the result; empty while the search is not over.
        identity: By what it was run: command, versions, config, ...; empty if it does not say.
        front: Candidates of the Pareto front that was written down.
        gates: Mixture of the winner's experts by layer.
        cost: What the run took: seconds, images a second, ...
    """

    folder: Path
    score: str
    rule: str
    candidates: tuple[Candidate, ...]
    best: Mapping
    identity: Mapping
    front: tuple[Candidate, ...]
    gates: Mapping[str, list[float]]
    cost: Mapping[str, float]

    @property
    def config(self) -> Mapping:
        """``val_cfg`` of the search, empty if it was not written down."""
        return (self.identity.get('config') or {}).get('val_cfg') or {}

    @property
    def space(self) -> SearchSpace:
        """The space of the config; without one, all choices that some candidate took."""
        if 'space' in self.config:
            return SearchSpace.coerce(self.config['space'])
        subnets = {c.subnet for c in self.candidates}
        widths, depths = {s.embed_dim for s in subnets}, {s.depth for s in subnets}
        heads = {choice for s in subnets for choice in s.num_heads}
        ratios = {choice for s in subnets for choice in s.mlp_ratio}
        patches = {s.patch_size for s in subnets} - {None}
        choices = map(sorted, (widths, depths, heads, ratios))
        return SearchSpace(*choices, patch_size=sorted(patches) or None)

    @property
    def limits(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest value allowed for each limited cost, infinite where open."""
        limits = self.config.get('constraints') or {}
        ends = {n: (low or 0.0, inf if high is None else high) for n, (low, high) in limits.items()}
        return {name: (low, high) for name, (low, high) in ends.items() if low > 0 or high < inf}

    @property
    def costs(self) -> list[str]:
        """Names of the costs that candidates have."""
        names = dict.fromkeys([*COSTS, *self.best.get('goals', ()), *self.limits])
        return [name for name in names if any(name in c.numbers for c in self.candidates)]

    @property
    def winner(self) -> Candidate:
        """The result, or the best so far."""
        return _candidate(self.best, self.score) if self.best else self.ranking[0]

    @property
    def baseline(self) -> Candidate | None:
        """The best of a random search, if there was one."""
        if self.best.get('baseline'):
            return _candidate(self.best['baseline'], self.score)
        return next(iter(self.ranked(self.of('baseline'))), None)

    @property
    def ranking(self) -> list[Candidate]:
        """The search's complete candidates, the best first; those scored again come before."""
        finals = self.ranked(c for c in self.of('finals') if c.generation == 0)
        again = {c.subnet for c in finals}
        return finals + [c for c in self.ranked(self.of('search')) if c.subnet not in again]

    @property
    def parents(self) -> list[Candidate]:
        """Those that would have children next."""
        return self.ranked(self.of('search'))[: self.best.get('parents', 0)]

    def of(self, phase: str) -> list[Candidate]:
        """Candidates of one phase, in order."""
        return [c for c in self.candidates if c.phase == phase]

    def ranked(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Those that are complete and have a score, the best first."""
        whole = [c for c in candidates if c.is_complete and isfinite(c.score)]
        return sorted(whole, key=lambda c: c.score, reverse=self.rule == 'greater')

    def gain(self, score: float, other: float) -> float:
        """By how much ``score`` is better than ``other``; negative if it is worse."""
        return other - score if self.rule == 'less' else score - other


def read_results(
    folder: str | Path, score: str = 'cross_entropy', rule: str = 'less'
) -> SearchResults:
    """Read a search's work directory.

    Args:
        folder: Where ``search_history.jsonl`` lies. ``best_subnet.json``, ``search.json``,
            ``front.json``, ``gates.json`` and ``search_cost.json`` are read if they are there.
        score: Metric by which candidates are ranked, unless the files name it.
        rule: 'less' or 'greater', unless the files name it.

    Raises:
        UserError: If there is no history, no candidate with such a score, or a file that is not
            as a search writes it.
    """
    folder = Path(folder)
    history = folder / 'search_history.jsonl'
    lines = read_history(history)
    best = _read(folder / 'best_subnet.json', dict)
    identity = best.get('search') or _read(folder / 'search.json', dict)
    score, rule = _metric(best, identity, folder, score, rule)
    most = max(line.get('images', 0) for line in lines)
    candidates = tuple(_numbered(lines, history, lambda line: _candidate(line, score, most)))
    front = _read(folder / 'front.json', list)
    marked = _numbered(front, folder / 'front.json', lambda line: _candidate(line, score))
    gates = _read(folder / 'gates.json', dict)
    cost = _read(folder / 'search_cost.json', dict)
    results = SearchResults(
        folder, score, rule, candidates, best, identity, tuple(marked), gates, cost
    )
    _check(results, lines)
    return results


def _metric(best: Mapping, identity, folder: Path, score: str, rule: str) -> tuple[str, str]:
    """Name and rule of the score, from the result, else the config, else as given."""
    with blame(f'{folder} says not by which config it was run'):
        settings = (identity.get('config') or {}).get('val_cfg') or {}
        score = best.get('score', settings.get('score', score))
        rule = best.get('rule', settings.get('rule', rule))
    one_of(rule, f'{folder}: the rule', ('less', 'greater'))
    return score, rule


def _read(path: Path, kind: type):
    """A JSON file of that kind; an empty one of it if there is no such file."""
    return read_json(path, kind=kind) if path.exists() else kind()


def _numbered(lines: list, path: Path, convert: Callable[[dict], Candidate]) -> list[Candidate]:
    """Each line converted; a mistake is told with its number."""
    converted = []
    for number, line in enumerate(lines, 1):
        with inside(f'{path}, {number}'):
            converted.append(convert(line))
    return converted


def _candidate(line: Mapping, score: str, most: int = 0) -> Candidate:
    """From a record of numbers by name, with ``images`` out of ``most``."""
    if not isinstance(line, Mapping):
        raise UserError(f'a candidate must be a dict with a subnet and numbers, got {short(line)}')
    images = line.get('images')
    numbers = {k: v for k, v in line.items() if isinstance(v, (int, float)) and k != score}
    return Candidate(
        subnet=Subnet.from_dict(line.get('subnet')),
        score=line.get(score, nan),
        numbers=numbers,
        generation=natural(line.get('generation', 0), 'generation'),
        phase=line.get('phase', 'search'),
        images=images,
        is_complete=images is None or images >= most,
        is_knee=bool(line.get('knee')),
    )


def _numbers(values, name: str, path: Path) -> None:
    """Refuse anything but a list of numbers, under ``name`` in a file."""
    if not isinstance(values, list) or not all(isinstance(v, (int, float)) for v in values):
        raise UserError(f'{path}: {short(name)} must hold numbers, got {short(values)}')


def _check(results: SearchResults, lines: list[dict]) -> None:
    """Refuse what no report can be made of."""
    folder, best, identity = results.folder, results.best, results.identity
    if not results.ranking:
        raise UserError(
            f'{folder}: no candidate has a {results.score!r} on all images; '
            f'the first has {sorted(lines[0])}; name another metric'
        )
    for layer, row in results.gates.items():
        _numbers(row, layer, folder / 'gates.json')
    if len({len(row) for row in results.gates.values()}) > 1:
        raise UserError(f'{folder / "gates.json"}: layers differ in their number of experts')
    for name, value in results.cost.items():
        _numbers([value], name, folder / 'search_cost.json')
    path = folder / 'best_subnet.json' if best else folder / 'search.json'
    with inside(str(path)), blame('it is not as a search writes it'):
        for name in ('candidates', 'images_evaluated', 'images_exhaustive', 'parents'):
            natural(best.get(name, 0), name)
        for name, metrics in (best.get('test') or {}).items():
            _numbers(list(metrics.values()), name, path)
        _ = [*(identity.get('command') or ())], {**(identity.get('versions') or {})}
        _ = results.space, results.limits, results.baseline, results.costs
        if not isfinite(results.winner.score):
            raise UserError(f'no number {results.score!r}, by which it was found')
