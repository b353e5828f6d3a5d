from .distillation import ParentDistillation
from .resumable_train_loop import ResumableTrainLoop
from .strategy import SandwichRule, UniformSampling
from .subnet_train_loop import SubnetSamplingTrainLoop
from .subnet_val_loop import SubnetTestLoop, SubnetValLoop
from .supernet_runner import SupernetRunner

__all__ = [
    'ParentDistillation',
    'ResumableTrainLoop',
    'SandwichRule',
    'SubnetSamplingTrainLoop',
    'SubnetTestLoop',
    'SubnetValLoop',
    'SupernetRunner',
    'UniformSampling',
]
