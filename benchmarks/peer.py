"""The peer of every timing: NVF in plain eager float32 PyTorch, with the steps of the authors' evaluation.

For each picture the whole box is projected and masked on the host; the field runs as 1 x 1 convolutions over
[hidden, x], concatenated anew for every layer, 150 000 points at a time; each chunk's answer is copied to the
host; and there the near points vote by `topk`. Written for this comparison, from that description.
"""

from __future__ import annotations

import copy
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvf_fast.camera import REFERENCE_FOCAL, REFERENCE_SIZE, reference_homography, remap
from nvf_fast.encoder import NormReLU
from nvf_fast.grid import Lattice
from nvf_fast.model import NVF

CHUNK = 150_000
BALL_MM = 80.0


class PlainNormReLU(nn.Module):
    """What `NormReLU` is, in the functions that anyone would call."""

    def __init__(self, norm: NormReLU) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        return F.relu(F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps))


class Peer:
    """Finds the joints of one right hand on the optical axis; `seconds` holds the last frame's stages.

    Args:
        model: the network.
        step_mm, surface_mm, fraction: as in `PoseEstimator`.
        device: of the network.
        compiled: whether encoder and field go through `torch.compile`.
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
            if isinstance(getattr(parent, "norm", None), NormReLU):
                parent.norm = PlainNormReLU(parent.norm)
        self.device, self.surface_mm, self.fraction = torch.device(device), surface_mm, fraction
        lattice = Lattice(step_mm)
        self.box = lattice.box()
        self._count = len(lattice)
        self.kernels = [weight.detach()[..., None].clone() for weight in self.model.field.weights]
        self.seconds: dict[str, float] = {}
        encode = self.model.encode_all  # every stack's features, as the release computes them
        self._encode = torch.compile(encode) if compiled else encode
        self._ask = torch.compile(self._field, dynamic=True) if compiled else self._field

    def __len__(self) -> int:
        """Points asked in every frame."""
        return self._count

    @torch.no_grad()
    def __call__(self, image: np.ndarray, K: np.ndarray, hand_scale: float | None = None) -> np.ndarray:
        """Joints (21, 3) float32 mm of an image (H, W, 3) uint8 with intrinsics K (3, 3)."""
        began = self._now()
        size = self.model.config.input_size
        homography = reference_homography(torch.from_numpy(np.asarray(K, dtype=np.float64)), size)
        picture = torch.from_numpy(image).to(self.device).permute(2, 0, 1)[None]
        features = self._encode(remap(picture, homography[None], size) / 127.5 - 1)[-1]
        encoded = self._now()

        uv = self.box[:, :2] / self.box[:, 2:] * (REFERENCE_FOCAL / (REFERENCE_SIZE / 2))
        inside = (uv.abs() <= 1).all(1)
        points, uv = self.box[inside], uv[inside]
        chunks = zip(points.split(CHUNK), uv.split(CHUNK), strict=True)
        answers = [self._ask(features, *chunk, hand_scale).cpu() for chunk in chunks]
        answer = torch.cat(answers, 1)
        queried = self._now()

        near = (50 * answer[0].tanh()).abs() < self.surface_mm
        joints = self._vote(points[near], answer[1:].unflatten(0, (-1, 4))[..., near])
        self.seconds = {"encode": encoded - began, "query": queried - encoded, "vote": self._now() - queried}
        return joints.numpy()

    def _field(self, features: Tensor, points: Tensor, uv: Tensor, hand_scale: float | None) -> Tensor:
        """Raw answers (85, N)."""
        points, uv = points.to(self.device), uv.to(self.device)
        inputs = [
            F.grid_sample(features, uv[None, :, None], align_corners=True)[..., 0],
            points[None, None, :, 2] / REFERENCE_FOCAL,
        ]
        if self.model.config.hand_scale:
            normalised = 0.0 if hand_scale is None else (hand_scale - 15) / 25
            inputs.append(torch.full_like(inputs[1], normalised))
        x = torch.cat(inputs, 1)
        hidden = x
        for layer, (kernel, bias) in enumerate(zip(self.kernels, self.model.field.biases, strict=True)):
            if layer > 0:
                hidden = torch.cat([F.leaky_relu(hidden, 0.01), x], 1)
            hidden = F.conv1d(hidden, kernel, bias)
        return hidden[0]

    def _vote(self, points: Tensor, votes: Tensor) -> Tensor:
        """Joints (21, 3) of voters (V, 3) and their votes (21, 4, V)."""
        if len(points) == 0:
            return torch.full((len(votes), 3), torch.nan)
        weight, direction = votes[:, 0], votes[:, 1:]
        offset = BALL_MM * (1 - weight)[:, None] * direction
        best = weight.topk(max(1, int(len(points) * self.fraction)), dim=1)
        target = (points.T + offset).gather(2, best.indices[:, None].expand(-1, 3, -1))
        return (best.values[:, None] * target).sum(2) / best.values.sum(1, keepdim=True)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
