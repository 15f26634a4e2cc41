"""A picture of which implementations live where, as SVG, HTML or Markdown."""

from contracts.map._atlas import Atlas, Chart, Implementation, State, draw_up

__all__ = ["Atlas", "Chart", "Implementation", "State", "draw_up"]
