"""Sources of training views, opened by path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nvf_fast.data.faults import DatasetError
from nvf_fast.training.view_mixture import ViewMixtureConfig
from nvf_fast.training.view_sources import ViewFolders, open_views, view_credits
from tests.photograph_cases import photograph_labels, write_photographs
from tests.test_sample_views import Spots


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("photographs"), photograph_labels(6))


def test_uses_every_source_deterministically(folder: Path) -> None:
    config = ViewMixtureConfig(
        rendered=1, rendered_wide=1, empty=1, photographs=1, photographs_wide=1, dataset=1
    )
    indices = list(range(20))
    views, again = (
        open_views(config, ViewFolders(photographs=folder), 3, Spots()).__getitems__(indices)
        for _ in range(2)
    )
    assert len(views) == 20
    np.testing.assert_array_equal(views.images, again.images)
    np.testing.assert_array_equal(views.joints, again.joints)
    hands = np.isfinite(views.boxes).all(-1)
    assert (~hands[:, 0]).any() and hands[:, 0].any() and (views.trust > 0).any()
    assert np.isfinite(views.joints[views.trust > 0]).all()


def test_works_without_photographs() -> None:
    mixture = open_views(ViewMixtureConfig(), ViewFolders(), seed=0)
    assert set(mixture.sources) == {"rendered", "rendered_wide", "empty"}
    assert view_credits(ViewFolders()) == {"rigs": [], "textures": [], "backgrounds": 0}
    assert view_credits(ViewFolders(), Spots())["dataset"] == "spots training"


def test_fingerprint_depends_on_the_sources(folder: Path) -> None:
    config = ViewMixtureConfig()
    plain = open_views(config, ViewFolders(), seed=0).fingerprint
    assert open_views(config, ViewFolders(photographs=folder), seed=0).fingerprint != plain
    assert open_views(config, ViewFolders(), seed=1).fingerprint != plain
    assert open_views(config, ViewFolders(), seed=0).fingerprint == plain
    assert open_views(config, ViewFolders(), 0, Spots()).fingerprint != plain


def test_backgrounds_in_subfolders_count(tmp_path: Path) -> None:
    def fingerprint() -> str:
        return open_views(ViewMixtureConfig(), ViewFolders(backgrounds=tmp_path), seed=0).fingerprint

    (tmp_path / "rooms").mkdir()
    (tmp_path / "README.md").write_text("Two rooms.")
    Image.new("RGB", (64, 32)).save(tmp_path / "rooms" / "one.png")
    before = fingerprint()
    Image.effect_noise((64, 32), 50).save(tmp_path / "rooms" / "two.png")
    assert fingerprint() != before
    assert view_credits(ViewFolders(backgrounds=tmp_path))["backgrounds"] == 2


def test_credits_name_sources_and_licences(folder: Path) -> None:
    photographs = view_credits(ViewFolders(photographs=folder))["photographs"]
    assert photographs and all(set(row) == {"source", "licence", "photographs"} for row in photographs)
    assert str(folder) not in str(photographs)


def test_refuses_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"labels\.json"):
        open_views(ViewMixtureConfig(), ViewFolders(photographs=tmp_path), seed=0)
