from .evolution_search_loop import EvolutionarySearchLoop
from .final_test import test_chosen
from .identity import check_checkpoint, read_identity
from .result import compare_results, result_of

__all__ = [
    'EvolutionarySearchLoop',
    'check_checkpoint',
    'compare_results',
    'read_identity',
    'result_of',
    'test_chosen',
]
