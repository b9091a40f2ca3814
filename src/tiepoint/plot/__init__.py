"""Pictures of keypoints, matches and alignments."""

from tiepoint.plot.draw import (
    draw_checkerboard,
    draw_difference,
    draw_keypoints,
    draw_matches,
    draw_overlay,
)

__all__ = ["draw_checkerboard", "draw_difference", "draw_keypoints", "draw_matches", "draw_overlay"]
