"""The round, the engines that carry it, and runs that survive being killed."""

from phalanx.training.engine import Collected, Engine, Inbox, Session
from phalanx.training.job import Job
from phalanx.training.local import Local

__all__ = ["Collected", "Engine", "Inbox", "Job", "Local", "Session"]
