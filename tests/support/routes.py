"""The same experts for two engines: a rounding that sends a token elsewhere changes all gradients."""

from __future__ import annotations

import numpy as np


def follow(leader, follower) -> list:
    """From now on a pass of the engine `follower` sends tokens where the pass of `leader` before it sent them.

    Returns the routes that are still to be followed. A bias decides only who is chosen, not with what weight.
    """
    routes, route, own = [], leader.route, follower.route

    def noted(*how):
        made = route(*how)
        routes.append(np.asarray(made.chosen, np.int64))
        return made

    def wanted(scores, bias, *how):
        bias, chosen = np.zeros(scores.shape, np.float32), routes.pop(0)
        np.put_along_axis(bias[: len(chosen)], chosen, 1e3, 1)
        return own(scores, scores.new_tensor(bias) if hasattr(scores, "new_tensor") else bias, *how)

    leader.route, follower.route = noted, wanted
    return routes
