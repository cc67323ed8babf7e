"""The baselines of every timing, in plain eager float32 PyTorch.

`Baseline` follows the steps of the authors' evaluation. For each image the whole box is projected and masked
on the host. The field runs as 1 x 1 convolutions over [hidden, x], concatenated anew for every layer, 150 000
points at a time. Each chunk's result is copied to the host, where the near points vote by `topk`. The code
was written for this comparison, from that description. `HandBaseline` does the same in a hand view: batch
norms are not folded into convolutions, and the field is sampled and evaluated point by point.
"""

from __future__ import annotations

import copy
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvf_fast.camera import REFERENCE_FOCAL, REFERENCE_SIZE, reference_intrinsics, remap
from nvf_fast.encoder import NormReLU
from nvf_fast.grid import Lattice
from nvf_fast.kernels.query_field.reference import POSITION_MM
from nvf_fast.model import NVF
from nvf_fast.volumes import HandVolume

CHUNK = 150_000
BALL_MM = 80.0


class PlainNormReLU(nn.Module):
    """`NormReLU` by PyTorch's own functions."""

    def __init__(self, norm: NormReLU) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        return F.relu(F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps))


class Baseline:
    """Predictor of one right hand's joints on the optical axis; `seconds` are by stage of the last frame.

    Args:
        model: the network.
        step_mm, surface_mm, fraction: as in `PoseEstimator`.
        device: of the network.
        compiled: whether to compile encoder and field by `torch.compile`.
    """

    def __init__(
        self,
        model: NVF,
        step_mm: float = 16.0,
        surface_mm: float = 5.0,
        fraction: float = 0.5,
        device: torch.device | str = "cpu",
        compiled: bool = False,
    ) -> None:
        self.model = copy.deepcopy(model).to(device).float().eval().requires_grad_(False)
        self.model.encoder.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for parent in list(self.model.encoder.modules()):
            if isinstance(norm := getattr(parent, "norm", None), NormReLU):
                parent.norm = PlainNormReLU(norm)
        self.device, self.surface_mm, self.fraction = torch.device(device), surface_mm, fraction
        lattice = Lattice(step_mm)
        self.box = lattice.box()
        self._count = len(lattice)
        self.kernels = [weight.detach()[..., None].clone() for weight in self.model.field.weights]
        self.seconds: dict[str, float] = {}
        encode = self.model.encode_all  # every stack's features, as the release computes them
        self._encode = torch.compile(encode) if compiled else encode
        self._query = torch.compile(self._field, dynamic=True) if compiled else self._field

    def __len__(self) -> int:
        """Number of points queried in every frame."""
        return self._count

    @torch.no_grad()
    def __call__(self, image: np.ndarray, K: np.ndarray, hand_scale: float | None = None) -> np.ndarray:
        """Predict joints (21, 3) float32 mm from an image (H, W, 3) uint8 with intrinsics K (3, 3)."""
        began = now(self.device)
        size = self.model.config.input_size
        inverse = torch.from_numpy(np.linalg.inv(np.asarray(K, dtype=np.float64)))
        homography = reference_intrinsics(size, dtype=torch.float64) @ inverse
        pixels = torch.from_numpy(image).to(self.device).permute(2, 0, 1)[None]
        features = self._encode(remap(pixels, homography[None], size) / 127.5 - 1)[-1]
        encoded = now(self.device)

        uv = self.box[:, :2] / self.box[:, 2:] * (REFERENCE_FOCAL / (REFERENCE_SIZE / 2))
        inside = (uv.abs() <= 1).all(1)
        points, uv = self.box[inside], uv[inside]
        chunks = zip(points.split(CHUNK), uv.split(CHUNK), strict=True)
        outputs = [self._query(features, *chunk, hand_scale).cpu() for chunk in chunks]
        output = torch.cat(outputs, 1)
        queried = now(self.device)

        near = (50 * output[0].tanh()).abs() < self.surface_mm
        joints = vote(points[near], output[1:].unflatten(0, (-1, 4))[..., near], self.fraction)
        ended = now(self.device)
        self.seconds = {"encode": encoded - began, "query": queried - encoded, "vote": ended - queried}
        return joints.numpy()

    def _field(self, features: Tensor, points: Tensor, uv: Tensor, hand_scale: float | None) -> Tensor:
        """Raw outputs (85, N) of the field."""
        points, uv = points.to(self.device), uv.to(self.device)
        inputs = [
            F.grid_sample(features, uv[None, :, None], align_corners=True)[..., 0],
            points[None, None, :, 2] / REFERENCE_FOCAL,
        ]
        if self.model.config.hand_scale:
            normalised = 0.0 if hand_scale is None else (hand_scale - 15) / 25
            inputs.append(torch.full_like(inputs[1], normalised))
        return evaluate_layers(torch.cat(inputs, 1), self.kernels, list(self.model.field.biases))


class HandBaseline:
    """Predictor of one right hand's joints in a box; `seconds` are by stage of the last image.

    Args:
        model: a network of hand views.
        step_mm, surface_mm, fraction: as in `PoseEstimator`.
        device: of the network.
    """

    def __init__(
        self,
        model: NVF,
        step_mm: float = 16.0,
        surface_mm: float = 5.0,
        fraction: float = 0.5,
        device: torch.device | str = "cpu",
    ) -> None:
        self.model = copy.deepcopy(model).to(device).float().eval().requires_grad_(False)
        self.device, self.surface_mm, self.fraction = torch.device(device), surface_mm, fraction
        self.volume = HandVolume()
        self.lattice = self.volume.lattice(step_mm, self.device)
        self.kernels = [weight.detach()[..., None].clone() for weight in self.model.field.weights]
        self.seconds: dict[str, float] = {}

    def __len__(self) -> int:
        """Number of points queried in every image."""
        return len(self.lattice)

    @torch.no_grad()
    def __call__(self, image: np.ndarray, K: np.ndarray, box: np.ndarray) -> np.ndarray:
        """Predict joints (21, 3) float32 mm of the unit hand.

        Args:
            image: (H, W, 3) uint8 RGB.
            K: (3, 3) intrinsics, px.
            box: (4,) px, (x0, y0, x1, y1).
        """
        began = now(self.device)
        size, model = self.model.config.input_size, self.model
        intrinsics, boxes = torch.from_numpy(K).double()[None], torch.from_numpy(box).double()[None]
        placement = self.volume.place(intrinsics, size, boxes=boxes)
        assert placement.slopes is not None and model.heads is not None
        slopes = placement.slopes.float().to(self.device)
        pixels = torch.from_numpy(image).to(self.device).permute(2, 0, 1)[None]
        encoding = model.encode_hands(remap(pixels, placement.homographies, size) / 127.5 - 1, slopes)
        coarse = encoding.joints(slopes)
        encoded = now(self.device)

        centre = coarse.mean(1)
        points = self.lattice.points(centre[:, 2], slopes)[0]
        uv = points[:, :2] / points[:, 2:] / slopes
        points, uv = (each[(uv.abs() <= 1).all(1)] for each in (points, uv))
        sampled = F.grid_sample(encoding.features, uv[None, :, None], align_corners=True)[..., 0]
        x = torch.cat([sampled, ((points - centre) / POSITION_MM).T[None]], 1)
        biases = [bias[0] for bias in model.field_biases(coarse)]
        raw = evaluate_layers(x, self.kernels, biases).cpu()
        points, queried = points.cpu(), now(self.device)

        near = (50 * raw[0].tanh()).abs() < self.surface_mm
        voted = vote(points[near], raw[1:].unflatten(0, (-1, 4))[..., near], self.fraction)
        joints = model.heads.combine(coarse, voted[None].to(self.device))[0].cpu()
        joints = joints.double() @ placement.frames[0]
        ended = now(self.device)
        self.seconds = {"encode": encoded - began, "query": queried - encoded, "vote": ended - queried}
        return joints.float().numpy()


def evaluate_layers(x: Tensor, kernels: list[Tensor], biases: list[Tensor]) -> Tensor:
    """Raw outputs (85, N) of the field for inputs x (1, C, N)."""
    hidden = x
    for layer, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        if layer > 0:
            hidden = torch.cat([F.leaky_relu(hidden, 0.01), x], 1)
        hidden = F.conv1d(hidden, kernel, bias)
    return hidden[0]


def vote(points: Tensor, votes: Tensor, fraction: float) -> Tensor:
    """Joints (21, 3) of voters (V, 3) and their votes (21, 4, V)."""
    if len(points) == 0:
        return torch.full((len(votes), 3), torch.nan)
    weight, direction = votes[:, 0], votes[:, 1:]
    offset = BALL_MM * (1 - weight)[:, None] * direction
    best = weight.topk(max(1, int(len(points) * fraction)), dim=1)
    target = (points.T + offset).gather(2, best.indices[:, None].expand(-1, 3, -1))
    return (best.values[:, None] * target).sum(2) / best.values.sum(1, keepdim=True)


def now(device: torch.device) -> float:
    """Current time in seconds, after synchronisation."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
