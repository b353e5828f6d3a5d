"""All parts, the most important first: what time does not suffice for is at the end."""

from . import parity, speed, training
from .runs import MACHINE, Part, describe_machine

PARTS = {
    part.name: part
    for part in (
        Part(MACHINE, 'Card, driver and versions', describe_machine, 60),
        Part('rates', 'The rate of large products', speed.rates, 40),
        Part('parity', 'Logits and gradients against the CPU', parity.parity, 120),
        Part('speed_t', 'T: speed and peak memory', speed.SPEED_T, 90),
        Part('launches', 'Kernels of a step', speed.launches, 40),
        Part('syncs', 'Synchronisations of a training', training.syncs, 40),
        Part('search', 'Search: route, merge and evaluate', speed.search_speed, 60),
        Part('memory', 'Activations and memory', speed.memory, 40),
        Part('float16', 'Training in float16', training.float16, 40),
        Part('ddp', 'DDP in one process', training.ddp, 40),
        Part('resume', 'Exact resume', training.exact_resume, 40),
        Part('loading', 'Reading of images', training.loading, 30),
        Part('speed_s', 'S: speed and peak memory', speed.SPEED_S, 60),
        Part('speed_b', 'B: speed and peak memory', speed.SPEED_B, 60),
        Part('digits', 'The digits, three stages', training.digits, 120),
        Part('fashion', 'Fashion-MNIST, a supernet', training.fashion, 90),
        Part('compiled', 'T with compiled blocks', speed.compiled, 120),
    )
}
