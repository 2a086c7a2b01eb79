"""Byzantine attacks for drills, and schedules of Byzantine workers."""

from phalanx.attacks.a_little_is_enough import ALittleIsEnough
from phalanx.attacks.adversary_knowledge import AdversaryKnowledge, Rule, column_mean
from phalanx.attacks.base import Attack, State
from phalanx.attacks.constant import Constant
from phalanx.attacks.delay import Delay
from phalanx.attacks.drop import Drop
from phalanx.attacks.gaussian_noise import GaussianNoise
from phalanx.attacks.inner_product_manipulation import InnerProductManipulation
from phalanx.attacks.label_flip import LabelFlip
from phalanx.attacks.least_visible import LeastVisible
from phalanx.attacks.local_model_poisoning import LocalModelPoisoning
from phalanx.attacks.mimic import Mimic
from phalanx.attacks.min_max import MinMax
from phalanx.attacks.min_sum import MinSum
from phalanx.attacks.mixed import Mixed
from phalanx.attacks.not_finite import NotFinite
from phalanx.attacks.optimal_a_little_is_enough import OptimalALittleIsEnough
from phalanx.attacks.optimal_inner_product_manipulation import OptimalInnerProductManipulation
from phalanx.attacks.planned_attack import PlannedAttack
from phalanx.attacks.reverse_gradient import ReverseGradient
from phalanx.attacks.schedules import (
    FixedWorkers,
    PeriodicWorkers,
    Phases,
    RandomWorkers,
    Schedule,
    SleeperWorkers,
)
from phalanx.attacks.sign_flip import SignFlip
from phalanx.attacks.silence import Silence
from phalanx.attacks.stale_gradient import StaleGradient
from phalanx.attacks.wrong_shape import WrongShape
from phalanx.attacks.zero import Zero

__all__ = [
    "ALittleIsEnough",
    "AdversaryKnowledge",
    "Attack",
    "Constant",
    "Delay",
    "Drop",
    "FixedWorkers",
    "GaussianNoise",
    "InnerProductManipulation",
    "LabelFlip",
    "LeastVisible",
    "LocalModelPoisoning",
    "Mimic",
    "MinMax",
    "MinSum",
    "Mixed",
    "NotFinite",
    "OptimalALittleIsEnough",
    "OptimalInnerProductManipulation",
    "PeriodicWorkers",
    "Phases",
    "PlannedAttack",
    "RandomWorkers",
    "ReverseGradient",
    "Rule",
    "Schedule",
    "SignFlip",
    "Silence",
    "SleeperWorkers",
    "StaleGradient",
    "State",
    "WrongShape",
    "Zero",
    "column_mean",
]
