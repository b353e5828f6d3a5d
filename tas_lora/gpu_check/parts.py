"""All parts, the most important first: what time does not suffice for is at the end.

Limits are twice what is expected: those of all parts sum to about twice the nine minutes.
"""

from . import parity, speed, training
from .runs import MACHINE, Part, describe_machine

PARTS = {
    part.name: part
    for part in (
        Part(MACHINE, 'Card, driver and versions', describe_machine, 30),
        Part('speed_t_256', 'T, batch 256: speed and peak memory', speed.SPEED['t', 256], 70),
        Part('parity', 'Logits and gradients against the CPU', parity.parity, 70),
        Part('rates', 'The rate of large products', speed.rates, 30),
        Part('launches', 'Kernels of a step', speed.launches, 30),
        Part('syncs', 'Synchronisations of a training', training.syncs, 30),
        Part('search', 'Search: route, merge and evaluate', speed.search_speed, 50),
        Part('memory', 'Activations and memory', speed.memory, 40),
        Part('float16', 'Training in float16', training.float16, 40),
        Part('ddp', 'DDP in one process', training.ddp, 40),
        Part('resume', 'Exact resume', training.exact_resume, 40),
        Part('loading', 'Reading of images', training.loading, 30),
        Part('speed_t_64', 'T, batch 64: speed and peak memory', speed.SPEED['t', 64], 40),
        Part('speed_t_1024', 'T, batch 1024: speed and peak memory', speed.SPEED['t', 1024], 50),
        Part('speed_s_256', 'S, batch 256: speed and peak memory', speed.SPEED['s', 256], 50),
        Part('speed_b_256', 'B, batch 256: speed and peak memory', speed.SPEED['b', 256], 60),
        Part('digits', 'The digits, three stages', training.digits, 170),
        Part('fashion', 'Fashion-MNIST, a supernet', training.fashion, 110),
        Part('compiled', 'T at its full size with compiled blocks', speed.compiled, 100),
    )
}
