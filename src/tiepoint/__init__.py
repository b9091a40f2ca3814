"""tiepoint finds the same points in two photographs, and uses them."""

__version__ = "0.1.0"
