"""The curve of how many errors lie below a threshold, and the area under it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def auc(errors: Sequence[float], threshold: float) -> float:
    """Area under the cumulative error curve up to `threshold`, divided by `threshold`: 1 is perfect.

    The curve joins (0, 0) and (e_i, i / n) of the sorted errors by straight lines and holds its last value up to
    the threshold (Sarlin et al., "SuperGlue", CVPR 2020, section 5.2, as its evaluation computes it). A failure
    is an infinite error. nan without errors.
    """
    if len(errors) == 0:
        return float("nan")
    ordered = np.sort(np.asarray(errors, np.float64))
    inside = ordered[ordered < threshold]
    recall = np.arange(len(inside) + 1) / len(ordered)
    x = np.concatenate([[0.0], inside, [threshold]])
    y = np.concatenate([recall, recall[-1:]])
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / threshold)
