"""What Byzantine workers do in drills, and which workers do it when."""

from phalanx.attacks.a_little_is_enough import ALittleIsEnough
from phalanx.attacks.base import Attack
from phalanx.attacks.constant import Constant
from phalanx.attacks.delay import Delay
from phalanx.attacks.gaussian_noise import GaussianNoise
from phalanx.attacks.mixed import Mixed
from phalanx.attacks.not_finite import NotFinite
from phalanx.attacks.reverse_gradient import ReverseGradient
from phalanx.attacks.schedules import FixedWorkers, RandomWorkers, Schedule, SleeperWorkers
from phalanx.attacks.sign_flip import SignFlip
from phalanx.attacks.silence import Silence
from phalanx.attacks.wrong_shape import WrongShape

__all__ = [
    "ALittleIsEnough",
    "Attack",
    "Constant",
    "Delay",
    "FixedWorkers",
    "GaussianNoise",
    "Mixed",
    "NotFinite",
    "RandomWorkers",
    "ReverseGradient",
    "Schedule",
    "SignFlip",
    "Silence",
    "SleeperWorkers",
    "WrongShape",
]
