"""Training of one subnet alone, in the place it has in the supernet."""

import numpy as np
from mmengine.registry import TASK_UTILS

from tas_lora import SearchSpace, Subnet
from tas_lora.engine.runner.strategy import SubnetStrategy


@TASK_UTILS.register_module()
class FixedSubnet(SubnetStrategy):
    """Every iteration trains the same subnet; weights that it does not use are not read.

    Args:
        subnet: The subnet, or its dict.
    """

    def __init__(self, subnet: Subnet | dict):
        self.subnet = Subnet.coerce(subnet)

    def draw(self, space: SearchSpace, rng: np.random.Generator) -> list[Subnet]:
        """The one subnet."""
        return [self.subnet]
