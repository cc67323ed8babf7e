"""The rasteriser and the solids: depth and weights against closed forms, orientation, occlusion."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from nvf_fast.synthetic.rasteriser import mesh_normals, rasterise
from nvf_fast.synthetic.solids import Solid, box, capsule, cylinder, ellipsoid, rounded_box

SIZE, FOCAL = 96, 130.0


def rays() -> tuple[np.ndarray, np.ndarray]:
    """Return x / z and y / z of every pixel."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    return (columns - SIZE / 2) / FOCAL, (rows - SIZE / 2) / FOCAL


def test_depth_of_a_plane() -> None:
    # The plane z = 400 + 0.5 x - 0.3 y, as two triangles that fill the view and face the camera.
    corners = np.array([(-400.0, -400.0), (400.0, -400.0), (400.0, 400.0), (-400.0, 400.0)])
    depth = 400 + corners @ [0.5, -0.3]
    vertices = np.column_stack([corners, depth])
    shown, weights, found = rasterise(vertices, np.array([[0, 2, 1], [0, 3, 2]], np.int32), FOCAL, SIZE)
    u, v = rays()
    assert (shown >= 0).all()
    np.testing.assert_allclose(found, 400 / (1 - 0.5 * u + 0.3 * v), rtol=1e-12)
    # Perspective-correct weights reproduce each pixel's position on the plane.
    faces = np.array([[0, 2, 1], [0, 3, 2]])[shown]
    w1, w2 = weights[..., 0, None], weights[..., 1, None]
    a, b, c = (vertices[faces[..., k]] for k in range(3))
    place = (1 - w1 - w2) * a + w1 * b + w2 * c
    np.testing.assert_allclose(place[..., 0] / place[..., 2], u, atol=1e-9)
    np.testing.assert_allclose(place[..., 1] / place[..., 2], v, atol=1e-9)


def test_depth_of_a_sphere() -> None:
    centre, radius = np.array([15.0, -20.0, 500.0]), 90.0
    sphere = ellipsoid(np.full(3, radius), rings=160, sides=240)
    shown, _, found = rasterise(sphere.vertices + centre, sphere.faces, FOCAL, SIZE)
    u, v = rays()
    towards = np.stack([u, v, np.ones_like(u)], -1)
    half, square = towards @ centre, (towards**2).sum(-1)
    root = half**2 - square * (centre @ centre - radius**2)
    with np.errstate(invalid="ignore"):
        near = (half - np.sqrt(root)) / square
    inside = root > 0.02 * np.nanmax(root)  # at the rim the mesh is slightly smaller than the sphere
    assert (shown[inside] >= 0).all() and (shown[root < 0] < 0).all()
    # Facets of 3 mm on a radius of 90 mm lie up to 0.02 mm below it; the depth error grows towards the rim.
    assert np.abs(found - near)[inside].max() < 0.2
    assert np.isinf(found[shown < 0]).all()


def test_occlusion() -> None:
    near, far = box(np.array([40.0, 40.0, 10.0])), box(np.array([200.0, 200.0, 10.0]))
    vertices = np.concatenate([far.vertices + [0, 0, 600], near.vertices + [0, 0, 400]])
    faces = np.concatenate([far.faces, near.faces + len(far.vertices)])
    for order in (np.arange(len(faces)), np.arange(len(faces))[::-1]):
        shown, _, depth = rasterise(vertices, faces[order], FOCAL, SIZE)
        assert depth[SIZE // 2, SIZE // 2] == pytest.approx(395)
        assert order[shown[SIZE // 2, SIZE // 2]] >= len(far.faces)
        assert depth[SIZE // 2, SIZE // 2 + 15] == pytest.approx(595)


@pytest.mark.parametrize(
    ("solid", "volume"),
    [
        (box(np.array([2.0, 3.0, 5.0])), 30.0),
        (cylinder(2.0, 5.0, sides=400), 20 * np.pi),
        (ellipsoid(np.array([1.0, 2.0, 3.0]), 120, 240), 8 * np.pi),
        # Few rings lose 2 and 6 % of an ellipsoid's and a capsule's volume.
        (rounded_box(np.array([2.0, 4.0, 6.0]), 1.0), 0.979 * 8 * np.pi),
        (capsule(2.0, 5.0), 0.9376 * (20 + 32 / 3) * np.pi),
    ],
    ids=["box", "cylinder", "ellipsoid", "rounded box", "capsule"],
)
def test_solids(solid: Solid, volume: float) -> None:
    mesh = trimesh.Trimesh(solid.vertices, solid.faces, process=False)
    assert mesh.volume == pytest.approx(volume, rel=1e-3)
    mesh.merge_vertices(merge_norm=True, merge_tex=True)
    assert mesh.is_watertight and mesh.is_winding_consistent
    normals = mesh_normals(solid.vertices, solid.faces)
    assert ((normals * solid.vertices).sum(1) > 0).all()
