"""Query points around hands: near the surface, along the rays through it, and about the hand."""

from __future__ import annotations

import numpy as np

from nvf_fast.data.hand_views import VIEW_POINTS

NEAR, ON_RAYS, IN_BALL = VIEW_POINTS // 2, VIEW_POINTS // 3, 18  # points; the rest lies in the slab
NEAR_MM, RAY_MM = 4.0, 45.0  # standard deviations of the distance from the surface and along rays
BALL_MM, SLAB_MM = 120.0, 130.0  # about the joints' mean: radius of the ball, half the slab's thickness
NEAREST_MM = 50.0


def points_about(
    near: np.ndarray, surface: np.ndarray, joints: np.ndarray, slope: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Sample query points around each of B hands.

    Half of them lie near the surface, a third at other depths on the rays through it, the rest in a ball
    about the joints' mean and in the slab of the view's frustum around it.

    Args:
        near: (B, `NEAR`, 3) mm, points near the surface.
        surface: (B, `ON_RAYS`, 3) mm, points on it.
        joints: (B, 21, 3) mm; all in the view's camera frame.
        slope: (B,) tangent of half the view's angle.
        random: source of randomness.

    Returns:
        (B, `VIEW_POINTS`, 3) float32 mm.
    """
    batch = len(joints)
    depth = np.maximum(surface[..., 2:] + random.normal(0, RAY_MM, (batch, ON_RAYS, 1)), NEAREST_MM)
    on_rays = surface * (depth / surface[..., 2:])
    centre = joints.mean(1, keepdims=True).astype(np.float64)
    towards = BALL_MM * unit_vectors(random, batch, IN_BALL)
    ball = centre + towards * random.random((batch, IN_BALL, 1)) ** (1 / 3)
    rest = VIEW_POINTS - NEAR - ON_RAYS - IN_BALL
    depth = np.maximum(centre[..., 2:] + random.uniform(-SLAB_MM, SLAB_MM, (batch, rest, 1)), NEAREST_MM)
    slab = random.uniform(-1, 1, (batch, rest, 2)) * slope[:, None, None] * depth
    points = np.concatenate([near, on_rays, ball, np.concatenate([slab, depth], axis=-1)], axis=1)
    return points.astype(np.float32)


def unit_vectors(random: np.random.Generator, *shape: int) -> np.ndarray:
    """Directions (*shape, 3), uniform over the sphere."""
    vectors = random.standard_normal((*shape, 3))
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
