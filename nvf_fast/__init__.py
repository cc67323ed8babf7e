"""Neural Voting Field: camera-space 3D hand pose from one RGB image.

    estimator = nvf_fast.load()
    pose = estimator(image, K)      # pose.joints: (21, 3) float32, mm, in the frame of the camera

Names load on first use, so `import nvf_fast` is quick and initialises no device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvf_fast import ops
    from nvf_fast.camera_model import Camera
    from nvf_fast.checkpoint import load_checkpoint, save_checkpoint
    from nvf_fast.config import NVFConfig
    from nvf_fast.estimator import PoseEstimator, load
    from nvf_fast.evaluation import metrics
    from nvf_fast.model import NVF
    from nvf_fast.pose import HandPose
    from nvf_fast.tracking import Tracker

__version__ = "0.1.0"

__all__ = [
    "NVF",
    "Camera",
    "HandPose",
    "NVFConfig",
    "PoseEstimator",
    "Tracker",
    "__version__",
    "load",
    "load_checkpoint",
    "metrics",
    "ops",
    "save_checkpoint",
]

_MODULE_OF = {
    "NVF": "nvf_fast.model",
    "Camera": "nvf_fast.camera_model",
    "HandPose": "nvf_fast.pose",
    "NVFConfig": "nvf_fast.config",
    "PoseEstimator": "nvf_fast.estimator",
    "Tracker": "nvf_fast.tracking",
    "load": "nvf_fast.estimator",
    "load_checkpoint": "nvf_fast.checkpoint",
    "save_checkpoint": "nvf_fast.checkpoint",
}
_MODULES = {"metrics": "nvf_fast.evaluation.metrics", "ops": "nvf_fast.ops"}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(_MODULES[name])
    else:
        raise AttributeError(f"module 'nvf_fast' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
