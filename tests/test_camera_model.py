"""Cameras with lens distortion: OpenCV's formulas, their inverse, changed images, views and poses."""

from __future__ import annotations

import copy
import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from nvf_fast.camera import plan_view, reference_intrinsics
from nvf_fast.camera_model import Camera, Cameras
from nvf_fast.estimator import PoseEstimator
from nvf_fast.inputs import read_cameras
from nvf_fast.volumes import FrustumVolume, HandVolume
from tests.fixed_sizes import with_fixed_sizes
from tests.hand_cases import hand_network
from tests.kernel_cases import sampled_view

K = np.array([[610.0, 0, 331.2], [0, 604.0, 236.9], [0, 0, 1]])
SIZE = (640, 480)
LENSES: dict[str, tuple[Any, tuple[float, ...]]] = {
    "pinhole": ("plumb_bob", ()),
    "four coefficients": ("plumb_bob", (-0.21, 0.07, 0.0012, -0.0017)),
    "five coefficients": ("plumb_bob", (0.18, -0.4, -0.0009, 0.002, 0.25)),
    "rational": ("plumb_bob", (0.4, -0.1, 0.001, 0.0015, 0.02, 0.6, -0.05, 0.03)),
    "thin prism": (
        "plumb_bob",
        (-0.1, 0.02, 0.0007, -0.001, 0.01, 0.05, 0.01, 0.0, 0.003, -0.001, -0.002, 0.001),
    ),
    "fisheye": ("fisheye", (0.06, -0.025, 0.011, -0.003)),
    "equidistant": ("fisheye", (0.0, 0.0, 0.0, 0.0)),
}
DISTORTED = [name for name in LENSES if name != "pinhole"]


def camera(name: str, intrinsics: np.ndarray = K, size: tuple[int, int] = SIZE) -> Camera:
    model, distortion = LENSES[name]
    return Camera(intrinsics, size, distortion, model)


def opencv_pixel(point: np.ndarray, camera: Camera, name: str) -> tuple[float, float]:
    """Project a point as OpenCV's documentation of `projectPoints` and `fisheye::projectPoints` says."""
    model, given = LENSES[name]
    a, b = point[0] / point[2], point[1] / point[2]
    if model == "fisheye":
        r = math.hypot(a, b)
        theta = math.atan(r)
        bent = theta * (1 + sum(k * theta ** (2 * i + 2) for i, k in enumerate(given)))
        x, y = (a * bent / r, b * bent / r) if r else (0.0, 0.0)
    else:
        k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4 = (*given, *[0.0] * (12 - len(given)))
        r2 = a**2 + b**2
        radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
        x = a * radial + 2 * p1 * a * b + p2 * (r2 + 2 * a**2) + s1 * r2 + s2 * r2**2
        y = b * radial + p1 * (r2 + 2 * b**2) + 2 * p2 * a * b + s3 * r2 + s4 * r2**2
    (fx, skew, cx), (_, fy, cy), _ = camera.K
    return fx * x + skew * y + cx, fy * y + cy


def points(count: int = 40) -> np.ndarray:
    """Points within 27 degrees of the axis, and one on it."""
    rays = np.random.default_rng(0).uniform(-0.35, 0.35, (count, 2))
    depths = np.random.default_rng(1).uniform(200, 900, (count, 1))
    return np.concatenate([np.append(rays * depths, depths, 1), [[0, 0, 500.0]]])


@pytest.mark.parametrize("name", LENSES)
def test_projects_as_opencv(name: str) -> None:
    skewed = camera(name, K + np.array([[0, 1.3, 0], [0, 0, 0], [0, 0, 0]]))
    expected = np.array([opencv_pixel(point, skewed, name) for point in points()])
    np.testing.assert_allclose(skewed.project(points()), expected, rtol=0, atol=1e-9)
    given = torch.from_numpy(points()).requires_grad_()
    found = skewed.project(given)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=1e-9)
    assert torch.autograd.gradcheck(skewed.project, (given[:3],))
    (gradient,) = torch.autograd.grad(found.sum(), given)
    assert gradient.isfinite().all(), "on the optical axis, too"
    assert skewed.project(points().astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("name", LENSES)
def test_rays_invert_the_projection(name: str) -> None:
    pixels = np.stack(np.meshgrid(np.linspace(-40, 680, 37), np.linspace(-40, 520, 29)), -1)
    rays = camera(name).rays(pixels)
    assert rays.shape == (29, 37, 3) and (rays[..., 2] == 1).all()
    np.testing.assert_allclose(camera(name).project(rays * 321.0), pixels, rtol=0, atol=1e-6)
    torch.testing.assert_close(camera(name).rays(torch.from_numpy(pixels)), torch.from_numpy(rays))


def test_rays_that_share_a_pixel_with_nearer_ones_are_out_of_sight() -> None:
    """A barrel's polynomial turns back at 45.5 degrees: OpenCV would fold what lies beyond into the image."""
    K = np.array([[400, 0, 319.5], [0, 400, 239.5], [0, 0, 1]])
    barrel = Camera(K, SIZE, (-0.32, 0, 0, 0))
    turn = math.degrees(math.atan((1 / (3 * 0.32)) ** 0.5))
    angles = np.radians([0, 20, turn - 0.2, turn + 0.2, 70, 89])
    pixels = barrel.project(np.stack([np.sin(angles), np.zeros(6), np.cos(angles)], 1))
    assert (np.diff(pixels[:3, 0]) > 0).all() and np.isnan(pixels[3:]).all()
    assert np.isnan(barrel.project(np.array([0, 0, -1.0]))).all(), "behind the camera"
    outermost = pixels[2, 0]
    rays = barrel.rays(np.array([[outermost, 239.5], [outermost + 5, 239.5]]))
    assert np.isfinite(rays[0]).all() and np.isnan(rays[1, :2]).all()
    nearest = Cameras.of([barrel]).straight(np.array([[[outermost + 50, 239.5]]]))
    np.testing.assert_allclose(nearest, [[[319.5 + 400 * math.tan(math.radians(turn)), 239.5]]], atol=1)


def test_equality_pickling_and_padding_of_coefficients() -> None:
    short = camera("four coefficients")
    longer = Camera(torch.from_numpy(K), [640, 480], [*short.distortion[:4], 0, 0, 0, 0])  # type: ignore[arg-type]
    assert short == longer and hash(short) == hash(longer)
    assert Camera(K, SIZE, np.zeros((1, 5))) == camera("pinhole") != short  # type: ignore[arg-type]
    assert copy.deepcopy(short) == short == pickle.loads(pickle.dumps(short))
    assert Camera(K, SIZE, (*short.distortion, 0.0, 0.0)) == short, "an untilted sensor"
    assert camera("equidistant") != camera("pinhole")
    with pytest.raises(ValueError, match="read-only"):
        short.K[0, 0] = 1.0
    assert Camera(**json.loads(json.dumps(short.to_dict()))) == short


def test_from_fov() -> None:
    wide = Camera.from_fov(90, (640, 480))
    assert wide.K[0, 0] == wide.K[1, 1] == pytest.approx(320)
    assert wide.K[:2, 2].tolist() == [319.5, 239.5]
    for degrees in (math.radians(150), 0, 180, math.nan):
        with pytest.raises(ValueError, match=r"must be 5 to 180 degrees, got .* math\.degrees"):
            Camera.from_fov(degrees, (640, 480))
    left, right = wide.rays(np.array([[-0.5, 239.5], [639.5, 239.5]]))
    assert math.degrees(math.acos(left @ right / np.linalg.norm(left) / np.linalg.norm(right))) == (
        pytest.approx(90)
    )


@pytest.mark.parametrize("name", LENSES)
def test_changed_cameras_see_points_where_changed_images_show_them(name: str) -> None:
    """Follow a pixel of an image whose values are its own coordinates."""
    original, seen = camera(name), camera(name).project(points(5))
    coordinates = np.stack(np.meshgrid(np.arange(640.0), np.arange(480.0)), -1)

    def shown(image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        """Bilinear samples of an image (H, W, 2)."""
        x, y = np.floor(pixels).astype(int).T
        u, v = (pixels - np.floor(pixels)).T[..., None]
        top = image[y, x] * (1 - u) + image[y, x + 1] * u
        return top * (1 - v) + (image[y + 1, x] * (1 - u) + image[y + 1, x + 1] * u) * v

    crop = original.cropped(30, 20, 610, 470)
    np.testing.assert_allclose(shown(coordinates[20:470, 30:610], crop.project(points(5))), seen, atol=1e-8)
    half = original.resized(320, 240)
    means = coordinates.reshape(240, 2, 320, 2, 2).mean((1, 3))
    np.testing.assert_allclose(shown(means, half.project(points(5))), seen, atol=1e-8)
    for quarters in (-1, 1, 2, 3, 4):
        turned = original.rotated(quarters)
        rotation = np.linalg.matrix_power([[0, 1, 0], [-1, 0, 0], [0, 0, 1]], quarters % 4)
        image = np.rot90(coordinates, quarters)
        assert turned.size == image.shape[1::-1]
        np.testing.assert_allclose(shown(image, turned.project(points(5) @ rotation.T)), seen, atol=1e-8)
    around = original.rotated(1).rotated(3)
    np.testing.assert_allclose(around.K, original.K)
    assert (around.distortion, around.size) == (original.distortion, original.size)


@pytest.mark.parametrize("name", DISTORTED)
@pytest.mark.parametrize(("scale", "factor"), [(1, 1), (5, 7)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_views_sample_the_distorted_image(name: str, scale: int, factor: int, mirrored: bool) -> None:
    """Views of an image that holds its own coordinates, from its planned crop, in float64."""
    size, (width, height) = 128, (640 * scale, 480 * scale)
    seeing = camera(name).resized(width, height)
    cameras = Cameras.of([seeing])
    box = torch.tensor([[380.0, 190.0, 500.0, 330.0]], dtype=torch.float64) * scale
    left = torch.tensor([mirrored])
    intrinsics = torch.from_numpy(cameras.intrinsics)
    placement = HandVolume().place(intrinsics, size, left, boxes=box, cameras=cameras)
    plan = plan_view(placement.matrices.flatten().tolist(), size, height, width, 1.0, next(iter(cameras)))
    assert factor - 1 <= plan.factor <= factor
    assert plan.lens_row is not None and placement.slopes is not None
    y, x = (torch.arange(n, dtype=torch.float64) for n in (height, width))
    image = torch.stack(torch.meshgrid(x, y, indexing="xy"))
    crop = image[:, plan.rows, plan.columns]
    assert crop[0].numel() < 0.25 * width * height
    views = sampled_view(crop, plan, size).permute(1, 2, 0)
    # The rays of some of the view's pixels, by the definition of the placement.
    axis = torch.arange(0, size, 9, dtype=torch.float64)
    u, v = torch.meshgrid(*2 * [(axis - size / 2) / (size / 2) * placement.slopes], indexing="xy")
    rays = torch.stack([u, v, torch.ones_like(u)], -1) @ placement.frames[0]
    expected = [[opencv_pixel(ray, seeing, name) for ray in row] for row in rays.numpy()]
    np.testing.assert_allclose(views[::9, ::9].numpy(), expected, rtol=0, atol=1e-6)
    # The view's middle shows the box's.
    ray = placement.frames[0, 2].numpy()
    np.testing.assert_allclose(opencv_pixel(ray, seeing, name), box[0].view(2, 2).mean(0), atol=1e-6)


def test_crops_reach_all_that_a_view_samples() -> None:
    """Whole images and their planned crops give equal views, at the edge and beyond a lens' view."""
    size, K = 128, np.array([[250.0, 0, 319.5], [0, 250.0, 239.5], [0, 0, 1]])
    image = torch.rand(3, 480, 640, dtype=torch.float64)
    for distortion, model in (((-0.3, 0.0, 0.0, 0.0), "plumb_bob"), ((0.02, 0.0, 0.0, 0.0), "fisheye")):
        seeing = Camera(K, SIZE, distortion, model)  # type: ignore[arg-type]
        ((intrinsics, lens),) = Cameras.of([seeing])
        for middle in ([320, 240], [20, 30], [630, 100], [400, 470]):
            for half in (20, 150):
                box = torch.tensor([[*np.subtract(middle, half), *np.add(middle, half)]], dtype=torch.float64)
                cameras = Cameras.of([seeing])
                place = HandVolume().place(
                    torch.from_numpy(intrinsics[None]), size, boxes=box, cameras=cameras
                )
                plan = plan_view(place.matrices.flatten().tolist(), size, 480, 640, 0.0, (intrinsics, lens))
                assert plan.lens_row is not None and place.slopes is not None
                assert place.slopes.isfinite().all()
                views = sampled_view(image[:, plan.rows, plan.columns], plan, size)
                fx, skew, cx, fy, cy, *lens_row = plan.lens_row
                cx, cy = cx + plan.columns.start / plan.factor, cy + plan.rows.start / plan.factor
                whole = sampled_view(image, plan._replace(lens_row=(fx, skew, cx, fy, cy, *lens_row)), size)
                torch.testing.assert_close(views, whole, rtol=0, atol=1e-9)
                assert views.isfinite().all() and views.any()


def test_reference_views_look_along_undistorted_rays() -> None:
    cameras = Cameras.of([camera("rational")])
    box = torch.tensor([[400.0, 100.0, 460.0, 160.0]], dtype=torch.float64)
    intrinsics = torch.from_numpy(cameras.intrinsics)
    place = FrustumVolume().place(intrinsics, 224, boxes=box, cameras=cameras)
    turned = place.frames[0].numpy() @ camera("rational").rays(np.array([430.0, 130.0]))
    np.testing.assert_allclose(turned[:2], 0, atol=1e-9)
    reference = reference_intrinsics(dtype=torch.float64)
    expected = reference @ place.frames @ torch.linalg.inv(intrinsics)
    torch.testing.assert_close(place.homographies, expected)


@pytest.mark.parametrize(
    ("intrinsics", "hint"),
    [
        (np.eye(3), "it is the identity matrix"),
        (
            [[0.95, 0, 0.5], [0, 1.27, 0.5], [0, 0, 1]],
            "it is normalised: multiply its first row by the width",
        ),
        ([[4.2, 0, 319.5], [0, 4.2, 239.5], [0, 0, 1]], "those in mm times the image's width"),
        ([[7e6, 0, 319.5], [0, 7e6, 239.5], [0, 0, 1]], "focal lengths of 64 to 6.4e+06 px"),
        ([[600, 0, 3200], [0, 600, 239.5], [0, 0, 1]], "77 degrees away: it belongs to another image"),
        ([[600, 0, 319.5], [0, 600, -1e5], [0, 0, 1]], "Camera.resized and Camera.cropped"),
        ([[600, 0, 0], [0, 600, 0], [319.5, 239.5, 1]], "it is transposed"),
        ([[600, 0, 319.5], [0, -600, 239.5], [0, 0, 1]], "positive focal lengths"),
        ([[600, 0, math.nan], [0, 600, 239.5], [0, 0, 1]], "K must be finite"),
        ([[600, 319.5, 0], [0, 600, 239.5], [0, 0, 1]], "a skew s of at most 0.25 fx"),
        ([[600, -151, 319.5], [0, 600, 239.5], [0, 0, 1]], "a skew s of at most 0.25 fx"),
    ],
)
def test_refuses_matrices_of_other_images(intrinsics: Any, hint: str) -> None:
    for accept in (lambda: Camera(intrinsics, SIZE), lambda: read_cameras(intrinsics, [(480, 640)])):
        with pytest.raises(ValueError, match="K must") as raised:
            accept()
        assert hint in str(raised.value)


@pytest.mark.parametrize(
    "focal_35mm", [12, 26, 85, 800], ids=["ultra wide", "phone", "portrait", "telephoto"]
)
def test_accepts_every_crop_of_a_photograph(focal_35mm: int) -> None:
    focal = 6000 * focal_35mm / 36
    photograph = Camera(np.array([[focal, 0, 2999.5], [0, focal, 1999.5], [0, 0, 1]]), (6000, 4000))
    for x, y in ((0, 0), (5900, 0), (2950, 1950), (5900, 3900)):
        photograph.cropped(x, y, x + 100, y + 100)
    photograph.cropped(-2000, -2000, 8000, 6000).resized(160, 128)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((K[:2], SIZE), ValueError, r"K must be \(3, 3\) px, got shape \(2, 3\)"),
        (("K", SIZE), TypeError, "K must be numbers of px"),
        ((K, 640), TypeError, r"size must be \(width, height\)"),
        ((K, (math.inf, 480)), TypeError, r"size must be \(width, height\)"),
        ((K, (10**400, 480)), ValueError, r"size must be \(width, height\)"),
        ((K, (640, 480.5)), ValueError, "positive whole numbers of px"),
        ((K, (640, 0)), ValueError, "positive whole numbers of px"),
        ((K, SIZE, (0.1,)), ValueError, "must be 0 or 4 or 5 or 8 or 12 or 14 numbers, got 1"),
        ((K, SIZE, (0.1,) * 5, "fisheye"), ValueError, "of a 'fisheye' camera must be 4 numbers, got 5"),
        ((K, SIZE, (), "pinhole"), ValueError, "model must be one of"),
        ((K, SIZE, (0.1, math.inf, 0, 0)), ValueError, "distortion must be finite"),
        ((K, SIZE, (0.0,) * 13 + (0.1,)), ValueError, "a tilted sensor"),
        ((K, SIZE, "radial"), TypeError, "distortion must be numbers"),
        ((torch.eye(3).to_sparse(), SIZE), TypeError, "K must be a dense tensor with values, got a torch.sp"),
        ((torch.empty(3, 3, device="meta"), SIZE), TypeError, "K must be a dense tensor .* one on meta"),
    ],
)
def test_refuses_invalid_cameras(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Camera(*arguments)


def test_refuses_arguments_of_other_types() -> None:
    for quarters in (1.5, "1", None):
        with pytest.raises(TypeError, match="quarters must be a whole number, got"):
            Camera(K, SIZE).rotated(quarters)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="degrees must be a number, got '66'"):
        Camera.from_fov("66", SIZE)  # type: ignore[arg-type]
    for size in (640, (640,), "ab"):
        with pytest.raises(TypeError, match=r"size must be \(width, height\)"):
            Camera.from_fov(66, size)  # type: ignore[arg-type]


@pytest.mark.parametrize(("method", "length"), [("project", 3), ("rays", 2)])
def test_vectors_are_lists_or_arrays_of_numbers(method: str, length: int) -> None:
    convert = getattr(camera("fisheye"), method)
    whole = [[300, 200, 900][:length]] * 2
    expected = convert(np.array(whole, np.float64))
    for given in (whole, np.array(whole), torch.tensor(whole)):
        found = convert(given)
        assert found.dtype == (torch.float64 if isinstance(given, torch.Tensor) else np.float64)
        np.testing.assert_array_equal(found, expected)
    for kind in (">f8", "f4", "f2", np.longdouble):
        given = np.array([*whole, [100, 100, 900][:length]], kind)[::-1]  # with negative strides
        given.flags.writeable = False
        found = convert(given)
        assert found.dtype == given.dtype
        np.testing.assert_array_equal(found[1:], expected.astype(kind))
    for given in ([1.0], 1.0, np.zeros((2, 4)), torch.zeros(3, 1)):
        with pytest.raises(ValueError, match=rf"must be \(\.\.\., {length}\) numbers, got shape"):
            convert(given)
    with pytest.raises(TypeError, match="must be"):
        convert(["a", "b", "c"][:length])


def test_refuses_cameras_of_other_sizes() -> None:
    estimator = PoseEstimator(hand_network())
    image, box = np.zeros((240, 320, 3), np.uint8), [100, 60, 180, 140]
    with pytest.raises(
        ValueError, match=r"of 640 x 480 px, image 0 has 320 x 240 px: pass .*resized\(320, 240\)"
    ):
        estimator(image, camera("fisheye"), box=box)
    estimator(image, camera("fisheye").resized(320, 240), box=box)
    with pytest.raises(ValueError, match=r"one for each of 1 image\(s\)"):
        estimator(image, [camera("fisheye").resized(320, 240)] * 2, box=box)
    with pytest.raises(ValueError, match="cannot be rotated"):
        camera("fisheye", K + np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0]])).rotated()


@pytest.mark.parametrize("side", ["right", None])
def test_mixed_cameras_in_one_batch_and_with_fixed_sizes(side: str | None) -> None:
    """A batch equals its images one by one, a pinhole camera its K bit by bit, and CUDA's path the CPU's."""
    estimator = PoseEstimator(hand_network())
    images: list[np.ndarray] = list(np.random.default_rng(0).integers(0, 256, (4, 480, 640, 3), np.uint8))
    names = ["pinhole", "rational", "fisheye", "equidistant"]
    cameras, box = [camera(name) for name in names], [380, 190, 500, 330]
    together = estimator(images, cameras, box=[box] * 4, side=[side] * 4)
    fixed = with_fixed_sizes(PoseEstimator(hand_network()))(images, cameras, box=[box] * 4, side=[side] * 4)
    for i, (image, each, name) in enumerate(zip(images, cameras, names, strict=True)):
        alone = estimator(image, each, box=box, side=side)
        # Convolutions of other batch sizes sum in another order.
        np.testing.assert_allclose(together.joints[i], alone.joints, rtol=0, atol=1e-2)
        np.testing.assert_allclose(fixed.joints[i], alone.joints, rtol=0, atol=1e-2)
        expected = [opencv_pixel(point, each, name) for point in alone.joints.astype(np.float64)]
        np.testing.assert_allclose(alone.joints_2d, expected, rtol=0, atol=1e-3)
    plain = estimator(images[0], K, box=box, side=side)
    np.testing.assert_array_equal(plain.joints, estimator(images[0], cameras[0], box=box, side=side).joints)
    again = estimator(images[1], cameras[1], previous=together[1])
    assert again.valid and again.box is not None


def test_boxes_out_of_sight_are_refused() -> None:
    estimator = PoseEstimator(hand_network())
    image = np.zeros((480, 640, 3), np.uint8)
    for name in ("pinhole", "rational", "fisheye"):
        with pytest.raises(ValueError, match="touches no pixel of image 0"):
            estimator(image, camera(name), box=[700, 200, 740, 240])
        assert estimator(image, camera(name), box=[600, 200, 700, 300], side="right").voters.ndim == 0
