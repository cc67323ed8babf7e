"""The renderer: outline and distance agree, machines agree, what is switched on shows."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nvf_fast.data import render as rendering
from nvf_fast.data import synthetic
from nvf_fast.data.draws import Draws
from nvf_fast.data.hand import UNIFORM, Hands, sample_hands
from nvf_fast.data.mesh import hand_mesh
from nvf_fast.data.render import render, render_hand
from nvf_fast.data.scenes import SceneDistribution, draw_scenes
from nvf_fast.data.surfaces import MeshHands
from nvf_fast.data.synthetic import V1, SyntheticConfig, draw_chunk
from nvf_fast.data.tracing import OUTSIDE, ConeSolid, pixel_width, trace_layers, trace_mesh, unit_rays

EVERYTHING = SceneDistribution(**{field.name: 1.0 for field in fields(SceneDistribution)})


def in_float64(rows: Any) -> Any:
    if isinstance(rows, Tensor):
        return rows.double() if rows.is_floating_point() else rows
    return type(rows)(**{name: in_float64(value) for name, value in vars(rows).items()})


def grey_levels(first: Tensor, second: Tensor) -> int:
    return int((first.int() - second.int()).abs().max())


@pytest.fixture(scope="module")
def hands() -> Hands:
    return sample_hands(6, torch.Generator().manual_seed(2), UNIFORM)


def test_the_outline_agrees_with_the_distance(hands: Hands) -> None:
    """A pixel is covered where its ray comes within the surface, uncovered where it stays away."""
    size = 46  # not a multiple of the blocks that rays start in
    solid = ConeSolid.of(hands)
    layers = trace_layers(solid, size)
    bare = torch.ones(len(hands), size * size)
    for layer in layers:
        away = hands.signed_distance(layer.points).abs() / (pixel_width(size) * layer.along)
        assert (away[layer.coverage > 0] < OUTSIDE).all(), "half a pixel off, then put onto the surface"
        bare.scatter_reduce_(1, layer.pixel, 1 - layer.coverage, "prod")
    depths = torch.linspace(hands.nodes[..., 2].min() - 25, hands.nodes[..., 2].max() + 25, 400)
    rays = unit_rays(size, depths)
    points = (rays[:, None] / rays[:, None, 2:] * depths[:, None]).reshape(1, -1, 3)
    for index in range(3):
        along = hands[index : index + 1].signed_distance(points).reshape(size * size, -1)
        nearest = (along / (pixel_width(size) * points.norm(dim=-1).reshape(size * size, -1))).amin(-1)
        assert (bare[index][nearest < -0.4] == 0).all(), "covered where a ray runs through the hand"
        assert (bare[index][nearest > 0.6] == 1).all(), "bare where it passes by"
        assert (bare[index] < 1).sum() > 30


def test_layers_come_from_front_to_back(hands: Hands) -> None:
    solid = ConeSolid.of(hands[:1])
    front, back = trace_layers(solid, 96)
    partly = front.pixel[0][(front.coverage[0] > 0) & (front.coverage[0] < 1)]
    assert set(back.pixel[0].tolist()) <= set(partly.tolist())
    depth = dict(zip(front.pixel[0].tolist(), front.along[0].tolist(), strict=True))
    assert all(z > depth[p] for p, z in zip(back.pixel[0].tolist(), back.along[0].tolist(), strict=True))


@pytest.mark.parametrize("config", [V1, SyntheticConfig(seed=5, size=96)], ids=["v1", "plain"])
def test_precision_threads_and_batches_change_a_grey_level_at_most(
    config: SyntheticConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured on 64 pictures of each kind at 224 px: 1, in one of 10 000 values."""
    monkeypatch.setattr(synthetic, "CHUNK", 6)
    hands, scenes, _ = draw_chunk(config, 0)
    pictures = render(hands, scenes, 64)
    assert grey_levels(pictures, render(in_float64(hands), in_float64(scenes), 64)) <= 1
    monkeypatch.setitem(rendering.AT_ONCE, "cpu", 4)
    assert grey_levels(pictures, render(hands, scenes, 64)) <= 1
    few = torch.tensor([5, 2])
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    assert grey_levels(pictures[few], render(hands[few], scenes[few], 64)) <= 1
    torch.set_num_threads(threads)


@pytest.mark.cuda
def test_a_gpu_draws_the_same_pictures() -> None:
    hands, scenes, _ = draw_chunk(V1, 0)
    hands, scenes = hands[:24], scenes[:24]
    there = render(hands.to("cuda"), scenes.to("cuda"), 224).cpu()
    assert grey_levels(render(hands, scenes, 224), there) <= 1


def test_what_is_switched_on_changes_nothing_else_that_is_drawn() -> None:
    plain = draw_scenes(Draws(1, "scene", range(8)))
    full = draw_scenes(Draws(1, "scene", range(8)), EVERYTHING)
    assert torch.equal(plain.skin.colour, full.skin.colour)
    assert torch.equal(plain.background.tone, full.background.tone)
    assert torch.equal(plain.camera.gamma, full.camera.gamma)
    assert (plain.thing.kind == 0).all() and (full.thing.kind > 0).all()
    assert (full.camera.blocks > 0).all() and (full.light.shadow > 0).all() and (full.before.count >= 0).all()


@pytest.mark.parametrize("name", [field.name for field in fields(SceneDistribution)])
def test_every_switch_shows(hands: Hands, name: str) -> None:
    streams = range(len(hands))
    plain, switched = (
        render(hands, draw_scenes(Draws(3, "scene", streams), chances), 64)
        for chances in (SceneDistribution(), SceneDistribution(**{name: 1.0}))
    )
    assert (plain != switched).flatten(1).any(1).sum() >= 3


def test_a_held_thing_hides_and_is_hidden() -> None:
    """Seen onto the palm a thing hides fingers' roots; seen onto the back the hand hides most of it."""
    hands = sample_hands(60, torch.Generator().manual_seed(5), UNIFORM)
    seen: list[float] = []
    towards_camera = -hands.palm[:, 2]
    for side in (towards_camera > 0.8, towards_camera < -0.8):
        few = hands[side]
        bare, holding = (
            draw_scenes(Draws(7, "scene", range(len(few))), SceneDistribution(objects=share))
            for share in (0, 1)
        )
        changed = (render(few, bare, 48) != render(few, holding, 48)).any(1).float().mean((1, 2))
        seen.append(float(changed.mean()))
    assert seen[0] > 1.3 * seen[1] > 0


def test_pictures_are_varied_and_well_formed() -> None:
    generator = torch.Generator().manual_seed(0)
    hands = sample_hands(4, generator)
    pictures = torch.stack([render_hand(hands[i : i + 1], 48, generator) for i in range(4)])
    assert pictures.shape == (4, 3, 48, 48) and pictures.dtype == torch.uint8
    assert pictures.float().std() > 20
    with pytest.raises(ValueError, match="one hand"):
        render_hand(hands, 48, generator)
    with pytest.raises(ValueError, match="4 hands and 3 scenes"):
        render(hands, draw_scenes(Draws(0, "scene", range(3))), 48)


def test_a_probability_is_a_probability() -> None:
    with pytest.raises(ValueError, match=r"clutter.*1\.5"):
        SceneDistribution(clutter=1.5)


@pytest.mark.slow
def test_a_mesh_of_the_hand_gives_its_picture() -> None:
    """Against the round cones that the mesh was made from; nails and the finest edges aside."""
    pytest.importorskip("skimage")
    hand = sample_hands(1, torch.Generator().manual_seed(4))
    vertices, faces = hand_mesh(hand, spacing_mm=4.0)
    mesh = MeshHands(torch.from_numpy(vertices).float()[None], torch.from_numpy(faces), hand.joints)
    size = 64
    cover = torch.zeros(2, size * size)
    for row, layers in enumerate((trace_layers(ConeSolid.of(hand), size), trace_mesh(mesh, size))):
        cover[row].scatter_(0, layers[0].pixel[0], layers[0].coverage[0])
    assert (cover[0] - cover[1]).abs().mean() < 0.02 * cover[0].mean() + 0.02
    scenes = draw_scenes(Draws(1, "scene", range(1)))
    ours, theirs = render(hand, scenes, size).float(), render(mesh, scenes, size).float()
    assert np.median((ours - theirs).abs().numpy()) <= 1 and (ours - theirs).abs().mean() < 4
