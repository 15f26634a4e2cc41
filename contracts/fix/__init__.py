"""Mends what breaks a contract: moves classes where they belong, with every reference to them."""

from contracts.fix._configured import Configured, configured
from contracts.fix._git import refuse_unsafe, top_folder
from contracts.fix._plan import Plan, Planner

__all__ = ["Configured", "Plan", "Planner", "configured", "refuse_unsafe", "top_folder"]
