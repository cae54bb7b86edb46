"""The coordinate check: does anything grow or shrink with width? Needs numpy and matplotlib."""
