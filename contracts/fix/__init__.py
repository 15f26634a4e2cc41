"""Mends what breaks a contract: moves classes where they belong, with every reference to them."""

from contracts.fix._configured import Configured, configured
from contracts.fix._git import refuse_unsafe, top_folder
from contracts.fix._plan import Options, Plan, plan

__all__ = ["Configured", "Options", "Plan", "configured", "plan", "refuse_unsafe", "top_folder"]
