from .complexity import count_flops, count_params
from .evolution import Evolution
from .front import best_within, knee_points, pareto_front
from .history import History, open_history, read_history
from .journal import Journal, Outcome, Task
from .limits import Limits
from .measured import Measured, open_measured, read_measured
from .nsga2 import NSGA2
from .race import Race, RaceRules
from .scorer import CandidateScorer
from .surrogate import Surrogate

__all__ = [
    'NSGA2',
    'Evolution',
    'History',
    'Journal',
    'Limits',
    'Measured',
    'Outcome',
    'Race',
    'RaceRules',
    'CandidateScorer',
    'Surrogate',
    'Task',
    'best_within',
    'count_flops',
    'count_params',
    'knee_points',
    'open_history',
    'open_measured',
    'pareto_front',
    'read_history',
    'read_measured',
]
