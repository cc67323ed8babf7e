"""Figures printed in the paper: its tables 2 to 8, figure 3, section 4.7."""

from __future__ import annotations

# Table 2 and 7, CS-MJE in mm on FreiHAND of other methods; none takes extra data or the hand scale.
OTHERS_CAMERA_SPACE = {
    "ObMan": 85.2,
    "MANO CNN": 71.3,
    "I2L-MeshNet": 60.3,
    "CMR-SG-RN18": 49.7,
    "CMR-SG-RN50": 48.8,
}

# Tables 2, 3, 7 and 8 by (method, extra data, hand scale): CS-MJE, TE and DE in mm.
CAMERA_SPACE = {
    ("holistic", False, False): (54.5, 50.6, 49.1),
    ("dense", False, False): (53.2, 49.2, 47.9),
    ("nvf", False, False): (47.2, 43.6, 42.4),
    ("holistic", False, True): (50.4, 46.9, 45.5),
    ("dense", False, True): (49.0, 45.3, 43.9),
    ("nvf", False, True): (42.4, 38.9, 37.8),
    ("holistic", True, False): (51.3, 48.7, 47.1),
    ("dense", True, False): (50.9, 47.9, 46.4),
    ("nvf", True, False): (44.6, 41.5, 40.4),
    ("holistic", True, True): (44.3, 41.7, 40.1),
    ("dense", True, True): (43.4, 40.5, 38.8),
    ("nvf", True, True): (39.3, 36.5, 35.5),
}

# Table 4 on HO-3D: MJE in mm, its AUC, RS-MJE in mm.
ROOT_RELATIVE: dict[str, tuple[float, float, float | None]] = {
    "Hasson et al.": (36.9, 0.369, None),
    "Pose2Mesh": (33.3, 0.480, 33.2),
    "ObMan": (31.8, 0.461, 55.2),
    "Liu et al.": (31.7, 0.463, 30.0),
    "Hampali et al.": (30.4, 0.494, None),
    "METRO": (28.9, 0.504, None),
    "I2L-MeshNet": (26.0, 0.529, 26.8),
    "Keypoint Transformer": (25.7, 0.553, None),
    "ArtiBoost": (25.3, 0.532, None),
    "Zheng et al.": (25.1, 0.541, None),
    "HandOccNet": (24.0, 0.557, 24.9),
    "RS-NVF": (21.8, 0.610, 23.2),
}

# Table 5: CS-MJE and CS-AUC of CS-NVF, MJE and AUC of RS-NVF, by the varied parameter and its value.
ABLATIONS: dict[str, dict[float, tuple[float, float, float, float]]] = {
    "voting fraction (%)": {
        25: (39.9, 0.36, 22.2, 0.60),
        50: (39.3, 0.37, 21.8, 0.61),
        75: (39.5, 0.36, 21.9, 0.61),
        100: (40.2, 0.36, 22.0, 0.60),
    },
    "clamping distance (mm)": {
        1: (39.3, 0.37, 21.9, 0.60),
        5: (39.3, 0.37, 21.8, 0.61),
        10: (40.0, 0.36, 21.8, 0.61),
        20: (40.1, 0.36, 21.9, 0.61),
    },
    "nearest neighbours": {
        256: (40.3, 0.35, 23.6, 0.59),
        512: (39.5, 0.36, 22.6, 0.60),
        1024: (39.3, 0.37, 21.8, 0.61),
        2048: (39.3, 0.37, 21.8, 0.61),
    },
}

# Table 6 by step in mm: points, CS-MJE in mm, CS-AUC, FPS. Section 4.7 adds RS-NVF's at 4 and 8 mm.
STEPS = {
    4: ("1882k", 39.2, 0.37, 1),
    8: ("230k", 39.2, 0.37, 8),
    16: ("28k", 39.3, 0.37, 34),
    24: ("8k", 39.8, 0.36, 50),
    32: ("3k", 42.4, 0.34, 56),
}
ROOT_RELATIVE_STEPS = {4: (21.7, 0.62), 8: (21.7, 0.62), 16: (21.8, 0.61)}

# Figure 3, CS-AUC in the legend.
AREAS = {
    "ObMan": 0.168,
    "MANO CNN": 0.184,
    "I2L-MeshNet": 0.233,
    "CMR-SG-RN18": 0.292,
    "Baseline-Holistic": 0.319,
    "Baseline-2D-Dense": 0.334,
    "CS-NVF": 0.366,
}
