"""Random wrong values, and how many of them are tried.

HYPOTHESIS_PROFILE=nightly tries 10,000 in each test, others at each run; without it a few hundred,
always the same.
"""

import json
import os
from copy import deepcopy

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

_common = dict(deadline=None, database=None, suppress_health_check=list(HealthCheck))
settings.register_profile('fuzz', max_examples=300, derandomize=True, **_common)
settings.register_profile('nightly', max_examples=10_000, derandomize=False, **_common)
# Not loaded for all: other tests choose their own settings.
fuzz = settings(settings.get_profile(os.environ.get('HYPOTHESIS_PROFILE', 'fuzz')))

numbers = (
    st.integers(-3, 40)
    | st.floats()
    | st.integers()
    | st.sampled_from([0, 1, 2**31, 2**63, 10**8, 10**18, 10**400, 1e-320, 1e308, 0.5, -0.0])
)
scalars = st.none() | st.booleans() | numbers | st.text(max_size=8)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


def places(node, path: tuple = ()) -> list[tuple]:
    """Paths of all values below ``node``."""
    found = [path] if path else []
    if isinstance(node, (dict, list)):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            found += places(value, (*path, key))
    return found


@st.composite
def mutated(draw, valid, values=anything):
    """``valid``, nested dicts and lists, with up to three changes."""
    node = deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        paths = places(node)
        if not paths:
            break
        *path, last = draw(st.sampled_from(paths))
        parent = node
        for key in path:
            parent = parent[key]
        change = draw(st.sampled_from(['replace', 'replace', 'remove', 'repeat', 'rename']))
        if change == 'remove':
            del parent[last]
        elif change == 'replace' or isinstance(parent, dict) != (change == 'rename'):
            parent[last] = draw(values)
        elif change == 'rename':
            parent[draw(st.text(max_size=8))] = parent.pop(last)
        else:
            parent.insert(last, parent[last])
    return node


@st.composite
def damaged(draw, valid: bytes, head: int = 0):
    """``valid`` with up to four bytes or stretches changed, half of them in the first ``head``."""
    content = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        end = min(head, len(content)) if head and draw(st.booleans()) else len(content)
        at = draw(st.integers(0, max(end - 1, 0)))
        stop = at + draw(st.integers(0, 1) | st.integers(0, len(content)))
        content[at:stop] = draw(st.binary(max_size=4) | st.just(bytes(content[at:stop]) * 2))
    return bytes(content)


def safetensors(header, data: bytes) -> bytes:
    """A file of the format safetensors."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, 'little') + text + data


CHANGES = ('remove', 'rename', 'rename part', 'shape', 'size', 'size', 'dimensions')


class Weights(dict):
    """A state dict that a failure shows by its shapes."""

    def __repr__(self):
        return repr({name: tuple(value.shape) for name, value in self.items()})


@st.composite
def damaged_weights(draw, valid: dict[str, torch.Tensor]):
    """A state dict with tensors removed, renamed, or of another shape or number of dimensions."""
    state = Weights(valid)
    shapes = st.lists(st.integers(0, 40), max_size=5)
    for _ in range(draw(st.integers(1, 3))):
        if not state:
            break
        name = draw(st.sampled_from(sorted(state)))
        value = state[name]
        change = draw(st.sampled_from(CHANGES))
        if change == 'remove':
            del state[name]
        elif change == 'rename':
            other = draw(st.text(max_size=12) | st.sampled_from(sorted(valid)))
            state[other] = state.pop(name)
        elif change == 'rename part':
            parts = name.split('.')
            at = draw(st.integers(0, len(parts) - 1))
            parts[at] = draw(st.text(max_size=3) | st.sampled_from(['0', '7', 'blocks', 'qkv']))
            state['.'.join(parts)] = state.pop(name)
        elif change == 'shape':
            state[name] = torch.zeros(()).expand(draw(shapes))
        elif change == 'size' and value.ndim:
            size = list(value.shape)
            size[draw(st.integers(0, value.ndim - 1))] = draw(st.integers(0, 40))
            state[name] = torch.zeros(()).expand(size)
        else:
            state[name] = draw(
                st.sampled_from([value.squeeze(), value.unsqueeze(0), value.flatten()])
            )
    return state
