"""Names of the regularized value estimators in TorchRL's registry."""

from enum import Enum


class RegValueEstimators(Enum):
    """Keys of the registry; the lower-case name works as a string: ``make_value_estimator("munchausen_td0")``.

    TorchRL's own ``ValueEstimators`` enum has members and so cannot be extended.
    """

    REGULARIZED_TD0 = "regularized TD(0)"
    REGULARIZED_TD1 = "regularized TD(1)"
    REGULARIZED_TDLAMBDA = "regularized TD(lambda)"
    REGULARIZED_QLAMBDA = "regularized Q(lambda)"
    SOFT_TD0 = "soft TD(0)"
    SOFT_TDLAMBDA = "soft TD(lambda)"
    MUNCHAUSEN_TD0 = "Munchausen TD(0)"
    PRIOR_SOFT_TD0 = "prior-regularized soft TD(0)"
