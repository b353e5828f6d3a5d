"""Learning rates of the study: chosen on the validation images, with a seed outside of it."""

from collections.abc import Mapping

from .methods import METHODS, SETS, Run

TUNING_SEED = 100
RATES = (3e-4, 1e-3, 3e-3)  # of adapters, and of the decoder or head beside them
HIGHER_RATES = (1e-3, 3e-3, 1e-2)  # of a decoder or head alone, and of cells
ENCODER_RATES = (3e-6, 1e-5, 3e-5)  # of an encoder that is trained as a whole; 1e-4 ruins it
ALPHA_FACTORS = (10, 30)  # of the architecture parameters' rate over it; the paper's is 10


def candidates(data: str, method: str) -> list[Run]:
    """Trainings that choose a method's rate; none for a method that takes another's."""
    found = METHODS[method]
    if found.rate_of:
        return []
    # A cell starts as a mean of eight operations, so its update is smaller than LoRA's.
    is_lower = found.adapter and not found.is_searched
    rates = ENCODER_RATES if found.trains_all else RATES if is_lower else HIGHER_RATES
    factors = ALPHA_FACTORS if found.is_searched else (None,)
    return [Run(data, method, TUNING_SEED, rate, a) for rate in rates for a in factors]


def chosen_rates(
    data: str, method: str, records: Mapping[str, dict]
) -> tuple[float | None, float | None]:
    """Rate of the weights and factor of the architecture parameters with the best score on val.

    Both are None if nothing was tuned, for the config's own.
    """
    own = METHODS[method].rate_of or method
    tried = [run for run in candidates(data, own) if run.name in records]
    metric = SETS[data].metric
    best = max(tried, key=lambda run: records[run.name]['scores']['val'][metric], default=None)
    return (best.rate, best.alpha) if best else (None, None)
