"""Read the results of a search from its work directory, without torch."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf, isfinite, nan
from pathlib import Path
from reprlib import repr as short

from ..checks import bounded, inside, natural
from ..errors import UserError, blame
from ..metric_rules import settled_rule
from ..provenance import read_json
from ..search import read_history
from ..structures import SearchSpace, Subnet

COSTS = ('params', 'flops', 'latency', 'memory')  # that a line of the history may have


@dataclass(frozen=True)
class Candidate:
    """A subnet that a search scored.

    Attributes:
        score: Value of the search's metric; NaN if it has none, for example if memory ran out.
        numbers: Costs (see ``COSTS``) and all other numbers of its line, by name.
        generation: Counted from 0 per phase; in 'finals', 1 is the random search.
        phase: 'search', 'baseline' (random search) or 'finals' (winners scored again).
        images: Number of held-out images it was evaluated on; None if not recorded.
        is_complete: Whether these are all images, so the score is not an estimate.
        is_knee: Whether it is marked as a knee of the front.
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
        score: Metric by which candidates are ranked.
        rule: 'less' or 'greater': which of two scores is better.
        candidates: All lines of the history, in order.
        best: The result, from ``best_subnet.json``; empty while the search is not finished.
        identity: Command, versions, config, ...; empty if not recorded.
        front: Candidates of the recorded Pareto front.
        gates: Mixture of the winner's experts, by layer.
        cost: Costs of the run: seconds, images per second, ...
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
    workers: list[dict] = field(default_factory=list)  # host, tasks and busy share of each

    @property
    def config(self) -> Mapping:
        """The search's ``val_cfg``; empty if not recorded."""
        return (self.identity.get('config') or {}).get('val_cfg') or {}

    @property
    def space(self) -> SearchSpace:
        """The config's search space; without a config, all choices that occur in candidates."""
        if 'space' in self.config:
            return SearchSpace.coerce(self.config['space'])
        subnets = {c.subnet for c in self.candidates}
        return SearchSpace(
            embed_dim=sorted({s.embed_dim for s in subnets}),
            depth=sorted({s.depth for s in subnets}),
            num_heads=sorted({choice for s in subnets for choice in s.num_heads}),
            mlp_ratio=sorted({choice for s in subnets for choice in s.mlp_ratio}),
            patch_size=sorted({s.patch_size for s in subnets} - {None}) or None,
        )

    @property
    def limits(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest allowed value of each limited cost, infinite where open."""
        limits = self.config.get('constraints') or {}
        ends = {n: (low or 0.0, inf if high is None else high) for n, (low, high) in limits.items()}
        return {name: (low, high) for name, (low, high) in ends.items() if low > 0 or high < inf}

    @property
    def costs(self) -> list[str]:
        """Names of the costs that any candidate has."""
        names = dict.fromkeys([*COSTS, *self.best.get('goals', ()), *self.limits])
        return [name for name in names if any(name in c.numbers for c in self.candidates)]

    @property
    def winner(self) -> Candidate:
        """The result, or the best so far."""
        return _candidate(self.best, self.score) if self.best else self.ranking[0]

    @property
    def baseline(self) -> Candidate | None:
        """The best of the random search, if there was one."""
        if self.best.get('baseline'):
            return _candidate(self.best['baseline'], self.score)
        return next(iter(self.ranked(self.of('baseline'))), None)

    @property
    def ranking(self) -> list[Candidate]:
        """Complete candidates of the search, best first; those scored again precede all others."""
        finals = self.ranked(c for c in self.of('finals') if c.generation == 0)
        again = {c.subnet for c in finals}
        return finals + [c for c in self.ranked(self.of('search')) if c.subnet not in again]

    @property
    def parents(self) -> list[Candidate]:
        """The candidates that would have children next."""
        return self.ranked(self.of('search'))[: self.best.get('parents', 0)]

    def of(self, phase: str) -> list[Candidate]:
        """Return the candidates of one phase, in order."""
        return [c for c in self.candidates if c.phase == phase]

    def ranked(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Sort those that are complete and have a score, best first."""
        whole = [c for c in candidates if c.is_complete and isfinite(c.score)]
        return sorted(whole, key=lambda c: c.score, reverse=self.rule == 'greater')

    def gain(self, score: float, other: float) -> float:
        """How much better ``score`` is than ``other``; negative if it is worse."""
        return other - score if self.rule == 'less' else score - other


def read_results(
    folder: str | Path, score: str = 'cross_entropy', rule: str | None = None
) -> SearchResults:
    """Read a search's work directory.

    Args:
        folder: Directory with ``search_history.jsonl``. ``best_subnet.json``, ``search.json``,
            ``front.json``, ``gates.json`` and ``search_cost.json`` are read if they exist.
        score: Metric by which candidates are ranked, unless the files name it.
        rule: 'less' or 'greater', unless the files name it; None infers it from the score.

    Raises:
        UserError: If there is no history, no candidate has such a score, or a file does not have
            the form in which a search writes it.
    """
    folder = Path(folder)
    history = folder / 'search_history.jsonl'
    lines = read_history(history)
    best = _read(folder / 'best_subnet.json', dict)
    identity = best.get('search') or _read(folder / 'search.json', dict)
    with blame(f'{folder} does not say by which config it was run'):
        settings = (identity.get('config') or {}).get('val_cfg') or {}
        score = best.get('score', settings.get('score', score))
        rule = best.get('rule', settings.get('rule', rule))
    most = max(line.get('images', 0) for line in lines)
    candidates = tuple(_numbered(lines, history, lambda line: _candidate(line, score, most)))
    if rule is not None or any(isfinite(c.score) for c in candidates):
        rule = settled_rule(score, rule, f'{folder}: the rule')
    front = _read(folder / 'front.json', list)
    marked = _numbered(front, folder / 'front.json', lambda line: _candidate(line, score))
    gates = _read(folder / 'gates.json', dict)
    cost = _read(folder / 'search_cost.json', dict)
    with blame(f'{folder / "search_cost.json"}: workers are not as a search writes them'):
        workers = [_worker(worker) for worker in cost.pop('workers', [])]
    results = SearchResults(
        folder, score, rule, candidates, best, identity, tuple(marked), gates, cost, workers
    )
    _check(results, lines)
    return results


def _read(path: Path, kind: type):
    """Read a JSON file of that type; if it does not exist, return an empty object of the type."""
    return read_json(path, kind=kind) if path.exists() else kind()


def _numbered(lines: list, path: Path, convert: Callable[[dict], Candidate]) -> list[Candidate]:
    """Convert each line; errors name its number."""
    converted = []
    for number, line in enumerate(lines, 1):
        with inside(f'{path}, {number}'):
            converted.append(convert(line))
    return converted


def _candidate(line: Mapping, score: str, most: int = 0) -> Candidate:
    """Convert a line of the history; it is complete with ``most`` images."""
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


def _worker(record: Mapping) -> dict:
    return dict(
        worker=natural(record['worker'], 'worker'),
        host=str(record['host']),
        tasks=natural(record['tasks'], 'tasks'),
        busy=bounded(record['busy'], 'busy'),
    )


def _numbers(values, name: str, path: Path) -> None:
    """Refuse anything but a list of numbers, found under ``name`` in a file."""
    if not isinstance(values, list) or not all(isinstance(v, (int, float)) for v in values):
        raise UserError(f'{path}: {short(name)} must hold numbers, got {short(values)}')


def _check(results: SearchResults, lines: list[dict]) -> None:
    """Refuse results that cannot be reported."""
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
            raise UserError(f'no number {results.score!r}, the metric of the search')
