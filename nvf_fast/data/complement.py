"""Complement, also CompHand: X. Chen et al., "MobRecon", CVPR 2022. Rendered hands, 256 x 256 px, one camera.

The files contain left hands in metres; images and meshes are mirrored to right hands, as in the authors' own
loader. See docs/datasets.md.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nvf_fast.data.faults import Faults
from nvf_fast.data.folder import FolderDataset
from nvf_fast.data.mano import VERTICES, Mano, close_surface, open_mano
from nvf_fast.data.sample import DamagedImageError, HandSample
from nvf_fast.data.tables import check_points, listed, read_image
from nvf_fast.runtime.files import read_path

PAGE = "https://github.com/SeanChenxy/HandMesh/blob/main/complement_data.md"
BATCHES = ("base_pose", "trans_pose_batch1", "trans_pose_batch2", "trans_pose_batch3")
VIEWS = 71  # released of each of 1520 poses
SIZE = 256
INTRINSICS = np.array([[373.3511425, 0, 128], [0, 373.3511425, 128], [0, 0, 1]])
LAYOUT = "BATCH/.../pic256/FOLDER/NAME.NUMBER.png"


class Complement(FolderDataset):
    """Complement's images, sorted by path, all for training.

    Args:
        folder: the folder that holds `base_pose`, `trans_pose_batch1`, ...
        mano: MANO's model or its file, for the regression of joints, which the data set lacks. Without it a
            warning is logged, and samples have vertices only.
        official: whether to require the official number of images.

    Raises:
        DatasetError: the files have faults; the message lists all. Only the first mesh of each pose is read.
    """

    name = "Complement"
    split = "all"
    expected = 1520 * VIEWS

    def __init__(
        self, folder: Path | str, mano: Mano | Path | str | None = None, *, official: bool = False
    ) -> None:
        self.folder = read_path("folder", folder)
        faults = Faults(self.name, self.folder, PAGE)
        faults.check_place(BATCHES)
        self._mano = open_mano(mano, faults)
        images = sorted(self.folder.glob("**/pic256/**/*.png"))
        if not images:
            faults.add(self.folder, "no images", LAYOUT)
        self.ids = [path.relative_to(self.folder).with_suffix("").as_posix() for path in images]
        self.faces = self._read_meshes(faults)
        self._check(faults, official)
        if self._mano is None:
            self.why_no_surfaces = "joints are not in the files but MANO's, regressed: mano=MANO_RIGHT.pkl"
            warnings.warn(f"Complement's samples have no joints: {self.why_no_surfaces}", stacklevel=2)

    def __getitem__(self, index: int) -> HandSample:
        """Return one sample; a `DamagedImageError` names an image or a mesh that cannot be read."""
        identity = self.ids[self._checked(index)]
        path = self.folder / f"{identity}.png"
        image = read_image(path)
        if image.shape != (SIZE, SIZE, 3):
            raise DamagedImageError(
                f"{path} is {image.shape[1]} x {image.shape[0]} px; expected {SIZE} x {SIZE}, its camera's"
            )
        mesh = self.folder / _mesh_of(identity)
        try:
            vertices = _read_vertices(mesh)
        except (OSError, ValueError) as error:
            raise DamagedImageError(f"{mesh} cannot be read: {error}") from error
        joints = None
        if self._mano is not None:
            joints = self._mano.regress(vertices.double()[None], "complement")[0].float()
        return self._sample(index, np.ascontiguousarray(image[:, ::-1]), INTRINSICS, joints, vertices)

    def _read_meshes(self, faults: Faults) -> Tensor | None:
        """Check that each image has its mesh, and return the closed faces common to all meshes."""
        meshes: dict[Path, list[str]] = {}
        nameless: list[str] = []
        for identity in self.ids:
            try:
                mesh = self.folder / _mesh_of(identity)
                meshes.setdefault(mesh.parent, []).append(mesh.name)
            except ValueError:
                nameless.append(identity)
        faults.add_many(self.folder, "images of another form", nameless, LAYOUT)
        faces: Tensor | None = None
        for place, names in meshes.items():
            present = listed(place)
            missing = [name for name in names if name not in present]
            faults.add_many(place, "meshes missing", missing, "one for each image of pic256")
            if names[0] not in present:
                continue
            path = place / names[0]
            try:
                vertices, own = _read_vertices(path), _read_faces(path)
                if faces is None:
                    faces, closed = own, close_surface(own, vertices)
                elif not torch.equal(own, faces):
                    faults.add(path, "other faces", "those of the data set's other meshes")
                check_points(path, vertices[None].numpy(), faults)
            except (OSError, ValueError) as error:
                faults.add(path, str(error), "a hand's mesh, open at the wrist")
        return None if faces is None else closed


def _mesh_of(identity: str) -> Path:
    """Path of the mesh of the image BATCH/.../pic256/FOLDER/NAME.NUMBER; a ValueError for another form."""
    *parts, _, name = Path(identity).parts
    last = len(parts) - 1 - parts[::-1].index("pic256")
    number = int(name.partition(".")[2].partition(".")[0])
    return Path(*parts[:last], "model_mano", *parts[last + 1 :], f"{number}.obj")


def _read_vertices(path: Path) -> Tensor:
    """(778, 3) float32 mm of a right hand."""
    rows = [words[:3] for words in _lines(path, "v ")]
    if len(rows) != VERTICES:
        raise ValueError(f"{len(rows)} vertices, {VERTICES} are MANO's")
    vertices = np.array(rows, dtype=np.float64) * [-1000, 1000, 1000]
    if not np.isfinite(vertices).all():
        raise ValueError("vertices with NaN or infinity")
    return torch.from_numpy(vertices.astype(np.float32))


def _read_faces(path: Path) -> Tensor:
    """(F, 3) int64; of `f a/b/c` the first number counts."""
    lines = _lines(path, "f ")
    if {len(words) for words in lines} != {3}:
        raise ValueError("no faces, or others than triangles")
    faces = torch.tensor([[int(corner.split("/")[0]) - 1 for corner in words] for words in lines])
    if faces.min() < 0 or faces.max() >= VERTICES:
        raise ValueError(f"faces of vertices {int(faces.min()) + 1} to {int(faces.max()) + 1}, of {VERTICES}")
    return faces


def _lines(path: Path, start: str) -> list[list[str]]:
    """Words of the lines of a mesh's file that begin with a word, without it."""
    text = path.read_text(encoding="latin1")
    return [line.split()[1:] for line in text.splitlines() if line.startswith(start)]
