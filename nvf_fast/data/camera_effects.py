"""From light to a picture's bytes: exposure, blur, noise, blocks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nvf_fast.data.scenes import Cameras
from nvf_fast.data.textures import normal_noise

SHARP_REACH, SMEAR_REACH = 2, 7  # px, half sizes of the blur's kernels
DCT = 8


def develop(picture: Tensor, camera: Cameras) -> Tensor:
    """(B, 3, S, S) light to uint8."""
    picture = picture.clamp(0, 1.3) * (camera.exposure[:, None] * camera.balance)[:, :, None, None]
    picture = picture.clamp(1e-4, 1) ** camera.gamma[:, None, None, None]
    size = picture.shape[-1]
    smear = camera.smear * (size / 224) ** 2
    blurred = torch.nonzero((camera.blur > 0) | (smear[:, 0] + smear[:, 2] > 0))[:, 0]
    if len(blurred):
        soft = _blur(picture[blurred], camera.blur[blurred], smear[blurred])
        picture = picture.index_copy(0, blurred, soft)
    noise, shot = (each[:, None, None, None].square() for each in (camera.noise, camera.shot_noise))
    strength = (noise + shot * picture.clamp_min(0)).sqrt()
    picture = picture + strength * normal_noise(camera.noise_seed, size)
    if (camera.blocks > 0).any():
        picture = torch.lerp(picture, _without_detail(picture), camera.blocks[:, None, None, None])
    return (picture.clamp(0, 1) * 255 + 0.5).to(torch.uint8)


def _blur(picture: Tensor, variance: Tensor, smear: Tensor) -> Tensor:
    """Blurs each picture by a Gaussian of its own covariance, px²."""
    smeared = smear[:, 0] + smear[:, 2] > 0
    reach = SMEAR_REACH if bool(smeared.any()) else SHARP_REACH
    line = torch.arange(-reach, reach + 1, device=picture.device, dtype=picture.dtype)
    xx, yy = (smear[:, k, None, None] + variance[:, None, None] + 1e-3 for k in (0, 2))
    xy = smear[:, 1, None, None]
    x, y = line, line[:, None]
    form = (yy * x * x - 2 * xy * x * y + xx * y * y) / (xx * yy - xy * xy)
    # A picture's kernel does not depend on its neighbours' in the batch.
    own = torch.where(smeared, SMEAR_REACH, SHARP_REACH)[:, None, None]
    inside = (x.abs() <= own) & (y.abs() <= own)
    kernel = torch.exp(-0.5 * form) * inside
    kernel = (kernel / kernel.sum((1, 2), keepdim=True)).repeat_interleave(3, 0)[:, None]
    padded = F.pad(picture, (reach,) * 4, mode="replicate").flatten(0, 1)[None]
    with torch.backends.cudnn.flags(enabled=False):  # whose convolutions round to 10 bits
        return F.conv2d(padded, kernel, groups=len(kernel))[0].unflatten(0, (-1, 3))


def _without_detail(picture: Tensor) -> Tensor:
    """Each block of 8 x 8 pixels reduced to the lowest frequencies of its cosine transform."""
    size = picture.shape[-1]
    extra = -size % DCT
    padded = F.pad(picture, (0, extra, 0, extra), mode="replicate")
    blocks = padded.unflatten(3, (-1, DCT)).unflatten(2, (-1, DCT)).transpose(3, 4)
    line = torch.arange(DCT, device=picture.device, dtype=picture.dtype)
    basis = torch.cos(math.pi / DCT * (line + 0.5) * line[:, None]) * (2 / DCT) ** 0.5
    basis[0] = DCT**-0.5
    kept = (line + line[:, None] < 3).to(picture.dtype)
    low = basis.T @ ((basis @ blocks @ basis.T) * kept) @ basis
    return low.transpose(3, 4).flatten(4, 5).flatten(2, 3)[..., :size, :size]
