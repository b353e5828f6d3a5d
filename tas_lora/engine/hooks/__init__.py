from .mole_hook import MoLEHook
from .mole_stats_hook import MoLEStatsHook

__all__ = ['MoLEHook', 'MoLEStatsHook']
