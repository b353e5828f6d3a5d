from ...renamed import renamed
from .evolution_search_loop import EvolutionarySearchLoop
from .identity import check_checkpoint, check_settings, read_identity
from .ray_executor import RAY_OPTIONS
from .recorded import recorded_config
from .result import compare_results, read_result, test_chosen

__all__ = [
    'RAY_OPTIONS',
    'EvolutionarySearchLoop',
    'check_checkpoint',
    'check_settings',
    'compare_results',
    'read_identity',
    'read_result',
    'recorded_config',
    'test_chosen',
]

__getattr__ = renamed(__name__, result_of='read_result')
