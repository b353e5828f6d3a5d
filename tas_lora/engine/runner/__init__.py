from .evolution_search_loop import EvolutionarySearchLoop
from .strategy import SandwichRule, UniformSampling
from .subnet_train_loop import SubnetSamplingTrainLoop
from .subnet_val_loop import SubnetTestLoop, SubnetValLoop
from .supernet_runner import SupernetRunner

__all__ = [
    'EvolutionarySearchLoop',
    'SandwichRule',
    'SubnetSamplingTrainLoop',
    'SubnetTestLoop',
    'SubnetValLoop',
    'SupernetRunner',
    'UniformSampling',
]
