"""Makes the fixture `world` known to the tests of this room."""

from goal_world import world

__all__ = ["world"]
