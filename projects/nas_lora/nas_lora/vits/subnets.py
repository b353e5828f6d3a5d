"""A subnet of an elastic supernet as a network of its own, to adapt it."""

from collections.abc import Mapping

from tas_lora import Subnet
from tas_lora.models import SupernetClassifier
from tas_lora.models.export import check_exportable, plain_network, standalone_state_dict
from tas_lora.models.plain_vit import PlainViT


def cut_out(model: SupernetClassifier, subnet: Subnet | Mapping | None = None) -> PlainViT:
    """Copy a subnet's weights into plain layers, which adapters can wrap.

    Args:
        model: A supernet around an :class:`ElasticViT`, with or without experts.
        subnet: The architecture; by default the active one.

    Returns:
        The network in evaluation mode. It shares no weight with the supernet.

    Raises:
        UserError: If the subnet does not fit, or the supernet has parts that a ``PlainViT`` lacks.
    """
    subnet = model.subnet if subnet is None else Subnet.coerce(subnet)
    check_exportable(model, None)
    net = PlainViT(**plain_network(subnet, model.image_spec, model.backbone.out_type))
    net.load_state_dict(standalone_state_dict(model, subnet))
    return net.eval()
