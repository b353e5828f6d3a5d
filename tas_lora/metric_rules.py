"""Whether more or less of a metric is better, as MMEngine infers it for ``save_best``."""

from collections.abc import Callable

from .checks import one_of
from .errors import UserError

# Those of MMEngine's CheckpointHook; `cross_entropy` is the one of this package.
GREATER = (
    'acc',
    'top',
    'AR@',
    'auc',
    'precision',
    'mAP',
    'mDice',
    'mIoU',
    'mAcc',
    'aAcc',
)
LESS = ('loss', 'cross_entropy')


def inferred_rule(metric: str) -> str | None:
    """'greater' or 'less' by the words in the name of a metric; None if it has none, or both.

    MMEngine would take 'greater' for a name with both, such as ``top/cross_entropy``.
    """
    name = str(metric).lower()
    lists = dict(greater=GREATER, less=LESS)
    exact = [rule for rule, words in lists.items() if name in map(str.lower, words)]
    within = [r for r, words in lists.items() if any(w.lower() in name for w in words)]
    found = exact or within
    return found[0] if len(found) == 1 else None


def settled_rule(
    metric: str, rule: str | None, field: str = 'rule', warn: Callable[[str], None] | None = None
) -> str:
    """The rule of a metric, as given or inferred; ``warn`` is told if they differ.

    Raises:
        UserError: If the rule is neither given nor known from the name, or is not a rule.
    """
    inferred = inferred_rule(metric)
    if rule is None and inferred is None:
        raise UserError(
            f"must be given for {metric!r}, whose name does not tell it: 'less' if lower values "
            "are better, 'greater' if higher ones are",
            field,
        )
    if rule is not None:
        one_of(rule, field, ('less', 'greater'))
    if warn and rule and inferred and rule != inferred:
        warn(f'{field} is {rule!r}, but the name {metric!r} suggests {inferred!r}')
    return rule or inferred
