"""Edges of pictures: what the ControlNet is given, and how a drawn picture is compared with what was asked."""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

#: Canny's thresholds on the gradient (L1, of the channel where it is steepest), those that most tools start with.
#: Above the second a pixel is an edge, above the first it is one if it continues one.
LOW_THRESHOLD, HIGH_THRESHOLD = 100, 200
#: How far apart, in each direction, an asked and a drawn edge may be and still agree, px.
TOLERANCE_PX = 1


def canny(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the edges of RGB pictures (n, height, width, 3): 255 on 0, (n, height, width).

    Of colours, not of a grey picture: red on purple has an edge, and grey levels would not show it.
    """
    return np.stack([cv2.Canny(np.ascontiguousarray(p), LOW_THRESHOLD, HIGH_THRESHOLD) for p in pictures])


def as_condition(edges: NDArray[np.uint8]) -> torch.Tensor:
    """Return edges (n, height, width) as a ControlNet takes them: float32 (n, 3, height, width) in [0, 1]."""
    return torch.from_numpy(edges)[:, None].repeat(1, 3, 1, 1).float() / 255


def agreement(drawn: NDArray[np.uint8], asked: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the F1 of drawn edges (n, height, width) and asked ones, for each picture, (n,).

    Precision is the part of the drawn edge pixels with an asked one in reach, recall the reverse.
    """
    pairs = zip(drawn > 0, asked > 0, strict=True)
    return np.asarray([_f1(_part(one, _reach(other)), _part(other, _reach(one))) for one, other in pairs])


def _reach(edges: NDArray[np.bool_]) -> NDArray[np.bool_]:
    across = 2 * TOLERANCE_PX + 1
    return cv2.dilate(edges.astype(np.uint8), np.ones((across, across), np.uint8)).astype(bool)


def _part(of: NDArray[np.bool_], within: NDArray[np.bool_]) -> float:
    return float((of & within).sum() / max(1, of.sum()))


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision and recall else 0.0
