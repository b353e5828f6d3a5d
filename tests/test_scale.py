"""Hours and cost of the stages, by hand and from records."""

import json

import pytest
from conftest import ROOT, call_tool
from tiny import SPACE, tiny_config, tiny_model

from tas_lora.costs import scale
from tas_lora.models.layers import expert_parameters

EASY = scale.Assumptions(
    images=1000,
    validated=0,
    candidates=10,
    held_out=100,
    race_share=0.5,
    search_speedup=((1, 1.0), (4, 2.0)),
    cores=4,
    workers=3,
    gpus_of_a_machine=2,
    bandwidth=100.0,
    network=10.0,
    launch=0.001,
    slices=2.0,
    price=3.0,
)
RECIPE = scale.Recipe(epochs=36, batch=100, val_interval=10)
SPEEDS = dict(supernet=10.0, experts=20.0, search=5.0, merge=3.0)
SPEEDS |= dict(kernels=dict(supernet=10, experts=100))
COUNTED = dict(gradient_bytes=100, checkpoint_bytes=0, products=1)


def times(gpus: int, reading: float, stage: str = 'supernet') -> dict:
    return scale.training_time(RECIPE, gpus, SPEEDS, stage, COUNTED, reading, EASY)


def test_a_training_by_hand():
    found = times(1, reading=10)
    assert found['hours'] == 1  # 36 x 1000 images at 10 a second
    assert found['bound'] == 'step'
    # Three readers of 10 images a second; 100 images in 10 launches of a millisecond.
    assert found['paces'] == dict(step=10, reading=30, launching=pytest.approx(1e4))


def test_what_bounds_a_training():
    assert times(1, reading=2)['bound'] == 'reading'
    assert times(1, reading=2)['hours'] == pytest.approx(10 / 6)
    inside, outside = times(2, 10), times(4, 10)
    # A ring of 2 exchanges 100 bytes at 100 a second for 50 images of each; of 4, 150 at 10 for 25.
    assert inside['paces']['exchange'] == pytest.approx(50)
    assert outside['paces']['exchange'] == pytest.approx(25 / 15)
    assert (inside['bound'], outside['bound']) == ('step', 'exchange')
    slow = dict(SPEEDS, kernels=dict(supernet=1e5))
    found = scale.training_time(RECIPE, 1, slow, 'supernet', COUNTED, 10, EASY)
    assert (found['bound'], found['paces']['launching']) == ('launching', pytest.approx(1))


def test_a_search_by_hand():
    """10 x 100 x .5 images at 5 a second, and 20 merges of 3 s."""
    assert scale.search_time(1, SPEEDS, EASY)['hours'] == pytest.approx(160 / 3600)
    found = scale.search_time(4, SPEEDS, EASY)
    assert (found['hours'], found['bound']) == (pytest.approx(80 / 3600), 'waiting')


def test_rows_have_every_stage_and_its_price():
    recipes = dict(supernet=RECIPE, experts=RECIPE)
    rows = list(scale.rows(dict.fromkeys(scale.STAGES, COUNTED), SPEEDS, recipes, 10, EASY))
    assert [(row['stage'], row['gpus']) for row in rows] == [
        (stage, gpus) for stage in scale.STAGES for gpus in (1, 4)
    ]
    assert all(r['dollars'] == pytest.approx(3 * r['gpus'] * r['hours']) for r in rows)


def test_bytes_are_those_of_the_models():
    counted = scale.sizes_of(tiny_config()['model'], SPACE.smallest())
    model = tiny_model()
    trained = sum(p.numel() for p in (*expert_parameters(model), *model.router.parameters()))
    whole = sum(p.numel() for p in model.parameters())
    bare = whole - trained
    assert counted['experts']['gradient_bytes'] == 4 * trained
    assert counted['experts']['checkpoint_bytes'] == 4 * (whole + 2 * trained)
    assert counted['supernet']['gradient_bytes'] == 4 * bare
    assert counted['supernet']['checkpoint_bytes'] == 12 * bare


def speed(value: float) -> dict:
    return dict(images_per_second=dict(median=value))


def test_records_take_the_place_of_assumptions():
    rows = dict(finetune=dict(train=speed(100)), ours=dict(train=speed(200), eval=speed(500)))
    counts = dict(route=1, merge=10, forward=100, backward=200, optimizers=5)
    figures = dict(
        speed_t_256=dict(batches={'256': rows}),
        search=dict(sizes=dict(t=dict(merge_ms=dict(median=4.0)))),
        launches=dict(counts=counts),
    )
    records = {name: dict(figures=value) for name, value in figures.items()}
    # Without experts there are no route (1) and merge (10), nor their backward, twice as many.
    assert scale.measured_speeds(records, 't') == dict(
        supernet=100, experts=200, search=500, merge=0.004, kernels=dict(experts=316, supernet=283)
    )
    assert scale.measured_speeds(records, 's') is None
    del records['search']
    assert scale.measured_speeds(records, 't') is None


@pytest.mark.full
def test_the_page_has_the_tables_of_the_tool(tmp_path):
    out, found = tmp_path / 'tables.md', tmp_path / 'scale.json'
    records = ROOT / 'tools' / 'results' / 'gpu'
    options = ('--records', records, '--markdown', out, '--json', found)
    assert call_tool('analysis/scale.py', *options) == 0
    page = (ROOT / 'docs' / 'scale.md').read_text()
    lines = out.read_text().splitlines()
    for line in (line for line in lines if line.startswith('|')):
        assert line in page, line
    assert json.loads(found.read_text())['reading'] > 1
