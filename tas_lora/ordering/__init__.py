from .blocks import rank_blocks
from .damage import Probe, measure_dimensions, smaller_choices
from .permute import apply_order
from .scores import ActivationScore, ChannelScore, OutputScore, TaylorScore
from .space import Proposal, propose_space

__all__ = [
    'ActivationScore',
    'ChannelScore',
    'OutputScore',
    'Probe',
    'Proposal',
    'TaylorScore',
    'apply_order',
    'measure_dimensions',
    'propose_space',
    'rank_blocks',
    'smaller_choices',
]
