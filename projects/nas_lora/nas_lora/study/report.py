"""Tables of the study, made from its records."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

from scipy.stats import ttest_1samp

from tas_lora import UserError
from tas_lora.errors import blame

from .methods import METHODS, SETS
from .records import read_records
from .tuning import TUNING_SEED

COMPARED = ('full', 'decoder', 'lora', 'conv_lora', 'adapter', 'vpt', 'nas_lora')
NOT_SEARCHED = ('uniform', 'uniform_fewer', 'random', 'best')
ALONE = tuple(name for name in METHODS if name.startswith('only_'))
ABLATIONS = (
    'nas_lora',
    *('tb0', 'tb8', 'tb2'),
    *('ratio1', 'ratio2'),
    *('rank1', 'rank8'),
    *('first', 'last'),
    *('no_conv', 'no_pool'),
    *ALONE,
)

Study = dict[str, dict[str, dict[int, dict]]]  # records by data set, method and seed


def read_study(folder: Path) -> Study:
    """The records in a folder, without those that tuned.

    Raises:
        UserError: If there are none, or one cannot be read.
    """
    study = {}
    for data in SETS:
        for record in read_records(folder / f'{data}.jsonl').values():
            with blame(f'{record["run"]} in {folder} lacks a number of the tables'):
                points(data, record), score(data, record, 'val'), record['trainable_in_encoder']
            if record['seed'] != TUNING_SEED:
                runs = study.setdefault(data, {}).setdefault(record['method'], {})
                runs[record['seed']] = record
    if not study:
        raise UserError(f'{folder} has no records; tools/compare.py writes them')
    return study


def score(data: str, record: dict, part: str = 'test') -> float:
    """The score of a record that its data set is compared by; accuracy in % as MMPretrain's."""
    return record['scores'][part][SETS[data].metric]


def best_alone(study: Study, data: str) -> str | None:
    """The operation that is best alone on val, mean over seeds; None if not all were trained."""
    runs = study[data]
    if any(name not in runs for name in ALONE):
        return None
    return max(ALONE, key=lambda m: mean(score(data, r, 'val') for r in runs[m].values()))


def runs_of(study: Study, data: str, method: str) -> dict[int, dict]:
    """Records of a method by seed; 'best' is the best operation alone."""
    name = best_alone(study, data) if method == 'best' else method
    return study[data].get(name, {})


def methods_table(study: Study) -> str:
    """Test scores of methods, and what they train in the encoder."""
    rows = [['method', 'trained in the encoder', *(SETS[data].label for data in study)]]
    for method in (*COMPARED, *NOT_SEARCHED):
        label = 'best operation alone' if method == 'best' else METHODS[method].label
        found = [runs_of(study, data, method) for data in study]
        if any(found):
            rows.append([label, _trained(found), *map(_cell, study, found)])
    return markdown(rows)


def ablations_table(study: Study) -> str:
    """Test scores of variants of NAS-LoRA, for the sets that have any."""
    sets = [data for data, runs in study.items() if any(m in runs for m in ABLATIONS[1:])]
    rows = [['NAS-LoRA', 'trained in the encoder', *(SETS[data].label for data in sets)]]
    for method in ABLATIONS:
        found = [study[data].get(method, {}) for data in sets]
        if any(found):
            label = 'ratio 1, T_B 1/4, rank 3, all' if method == 'nas_lora' else None
            rows.append([label or METHODS[method].label, _trained(found), *map(_cell, sets, found)])
    return markdown(rows)


def differences_table(study: Study, others: Sequence[str] = (*NOT_SEARCHED, *COMPARED[:-1])) -> str:
    """NAS-LoRA minus other methods, in points of the test score, paired by seed.

    p is that of Student's test over all pairs, for a mean difference of 0.
    """
    rows = [['NAS-LoRA minus', *(SETS[data].label for data in study), 'all pairs', 'p']]
    for other in others:
        by_set = [_differences(study, data, other) for data in study]
        pairs = [value for values in by_set for value in values]
        if pairs:
            label = 'best operation alone' if other == 'best' else METHODS[other].label
            p = f'{ttest_1samp(pairs, 0).pvalue:.2g}' if len(pairs) > 2 else ''
            rows.append([label, *map(signed, by_set), f'{signed(pairs)} ({len(pairs)})', p])
    return markdown(rows)


def _differences(study: Study, data: str, other: str) -> list[float]:
    ours, theirs = (runs_of(study, data, method) for method in ('nas_lora', other))
    return [points(data, ours[s]) - points(data, theirs[s]) for s in ours if s in theirs]


def points(data: str, record: dict) -> float:
    """The test score in %."""
    return _percent(data, record['scores']['test'])


def _percent(data: str, scores: Mapping[str, float]) -> float:
    value = scores[SETS[data].metric]  # accuracy is in % as it comes from MMPretrain
    return 100 * value if SETS[data].metric == 'iou' else value


def _cell(data: str, runs: dict[int, dict]) -> str:
    values = [points(data, record) for record in runs.values()]
    if not values:
        return ''
    return f'{mean(values):.1f}' + (f' +-{stdev(values):.1f}' if len(values) > 1 else '')


def _trained(found: Sequence[dict[int, dict]]) -> str:
    counts = {r['trainable_in_encoder'] for runs in found for r in runs.values()}
    return f'{max(counts):,}'  # positions differ by the size of images


def signed(values: Sequence[float]) -> str:
    """Mean and, of several, standard deviation, with its sign."""
    if not values:
        return ''
    return f'{mean(values):+.2f}' + (f' +-{stdev(values):.2f}' if len(values) > 1 else '')


def levels_table(records: Sequence[Mapping]) -> str:
    """What folding and merging lose of the test score, mean over seeds, from ``levels.jsonl``.

    Brackets hold the error of the encoder's outputs, as a share of what the adapters change.
    """
    names = ('dropped', 'fold', 'exact', 'least_squares', 'distilled')
    rows = [['trained', 'seeds', 'adapted', *names, 'R^2 of layers']]
    for data, method in dict.fromkeys((r['data'], r['method']) for r in records):
        runs = [r for r in records if (r['data'], r['method']) == (data, method)]
        label = f'{METHODS[method].label}, {SETS[data].label}'
        before = mean(_percent(data, r['scores']) for r in runs)
        r2 = [v for r in runs for v in r['levels']['least_squares']['r2'].values()]
        cells = [_level(data, runs, name) for name in names]
        spread = f'{min(r2):.2f} to {max(r2):.2f}'
        rows.append([label, str(len(runs)), f'{before:.1f}', *cells, spread])
    return markdown(rows)


def _level(data: str, runs: Sequence[Mapping], name: str) -> str:
    found = [r['levels'][name] for r in runs]
    if any('refused' in each for each in found):
        return 'refused'
    pairs = zip(found, runs, strict=True)
    lost = mean(_percent(data, level['scores']) - _percent(data, r['scores']) for level, r in pairs)
    return f'{lost:+.2f} ({mean(each["difference"] for each in found):.2g})'


def costs_table(records: Mapping[str, Mapping]) -> str:
    """Costs of a training step from ``costs_SHAPE.json``, by shape."""
    rows = [['step', 'trained in the first', *(f'{name}: / full (/ LoRA)' for name in records)]]
    name, first = next((name, record['methods']) for name, record in records.items())
    rows[0] += [f'{name}: launches', 'kept for backward', 'peak']
    for method, cost in first.items():
        ratios = [_ratios(record['methods'][method]) for record in records.values()]
        memory = [f'{cost["saved_mib"]:.0f} MiB', f'{cost["peak_mib"]:.0f} MiB']
        launches = f'{cost["launches"]["weights"]:,}'
        rows.append([method, f'{cost["trainable"]:,}', *ratios, launches, *memory])
    return markdown(rows)


def _ratios(cost: Mapping) -> str:
    return f'{cost["to_full"]["median"]:.2f} ({cost["to_lora"]["median"]:.2f})'


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table. The first row is the header; numbers are right-aligned."""
    rule = ['---', *['---:'] * (len(rows[0]) - 1)]
    return '\n'.join(f'| {" | ".join(row)} |' for row in [rows[0], rule, *rows[1:]])


def mean_choices(runs: dict[int, dict]) -> dict[str, dict[str, float]]:
    """Mean probabilities over seeds, by short name of layer and part, such as '0.q'."""
    records = list(runs.values())
    return {
        _short(layer): {name: mean(r['choices'][layer][name] for r in records) for name in chances}
        for layer, chances in records[0]['choices'].items()
    }


def _short(layer: str) -> str:
    block = next(part for part in layer.split('.') if part.isdigit())
    return f'{block}.{layer.split(".")[-1]}'
