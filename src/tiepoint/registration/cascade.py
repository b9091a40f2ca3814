"""The method `auto`: cheap first, and more only where the verdict asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiepoint.images import Image
from tiepoint.matchers import Matcher, MatcherOptions, NearestNeighbours, Sift, SparseMatcher, matcher
from tiepoint.registration.register import Registrar, Registration, RegistrationConfig
from tiepoint.weights import WeightsError, default_weights


@dataclass(frozen=True)
class Step:
    """One way to match, by the name it is reported under."""

    name: str
    build: Callable[[], Matcher[Any]]


def auto_steps(options: MatcherOptions) -> list[Step]:
    """SIFT; SIFT with weak keypoints too; then the learned methods that register most of what SIFT does not.

    By `benchmarks/auto_rescues.py` those are SuperPoint with SuperGlue, and LoFTR. Methods whose weights are not on
    this machine are left out.
    """
    steps = [
        Step("sift", lambda: matcher("sift", options)),
        Step("sift, more keypoints", lambda: _searching_sift(options)),
    ]
    if find_spec("torch") is not None:
        own = replace(options.at_any_rotation(), look="once", weights=None, max_num_keypoints=None)
        learned = ("superpoint+superglue", "loftr")
        steps += [Step(name, partial(matcher, name, own)) for name in learned if _has_weights(name)]
    return steps


def _searching_sift(options: MatcherOptions) -> Matcher[Any]:
    """SIFT with a quarter of the contrast threshold and twice the keypoints, for plain or dim objects."""
    extractor = Sift(
        max_num_keypoints=2 * (options.max_num_keypoints or Sift.max_num_keypoints),
        max_size_px=options.max_size_px or Sift.max_size_px,
        contrast_threshold=Sift.contrast_threshold / 4,
    )
    return SparseMatcher("sift", extractor, NearestNeighbours(ratio=0.9))


def _has_weights(method: str) -> bool:
    try:
        default_weights(method)
    except WeightsError:
        return False
    return True


class Cascade:
    """Registers by the first step whose result is accepted; a step is made ready when it is first needed."""

    def __init__(
        self,
        template: Image,
        steps: Sequence[Step],
        config: RegistrationConfig | None = None,
        *,
        mask: NDArray[np.bool_] | None = None,
    ) -> None:
        self.template = template
        self.steps = tuple(steps)
        self.config = config
        self.mask = mask
        self._registrars: dict[str, Registrar[Any]] = {}

    def register(self, source: Image) -> Registration:
        """The accepted registration, or the refused one with the most inliers; `tried` names the steps made."""
        results: list[Registration] = []
        for step in self.steps:
            results.append(self._registrar(step).register(source))
            if results[-1].accepted:
                break
        best = max(results, key=lambda result: (result.accepted, result.estimate.num_inliers))
        seconds: dict[str, float] = {}
        for result in results:
            for stage, taken in result.seconds.items():
                seconds[stage] = seconds.get(stage, 0.0) + taken
        tried = tuple(step.name for step in self.steps[: len(results)])
        won = tried[results.index(best)]
        return replace(best, method=won, tried=tried, seconds=seconds)

    def _registrar(self, step: Step) -> Registrar[Any]:
        if step.name not in self._registrars:
            self._registrars[step.name] = Registrar(self.template, step.build(), self.config, mask=self.mask)
        return self._registrars[step.name]
