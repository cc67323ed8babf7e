"""The accelerated operations: sample a network's views, normalise, merge and pool feature maps, place the
field around coarse poses, query it, select the voters, cast their votes; and for training and evaluation,
distances to meshes and intersections of rays with meshes.

Each runs its Triton kernel on CUDA tensors and PyTorch on CPU tensors; `backend="triton"` or
`backend="torch"` forces one. A shape that does not fit raises a `ValueError`, a dtype a `TypeError`, and a
backend that cannot run here a `RuntimeError`. `nvf_fast.kernels.NAME.reference` defines each operation.
"""

from nvf_fast.ops.cast_votes import cast_votes
from nvf_fast.ops.group_norm_relu import group_norm_relu
from nvf_fast.ops.join_branches import join_branches
from nvf_fast.ops.merge_maps import merge_maps
from nvf_fast.ops.mesh_distance import mesh_distance
from nvf_fast.ops.network_views import network_views
from nvf_fast.ops.operation import Backend
from nvf_fast.ops.pack_poses import pack_poses
from nvf_fast.ops.place_hands import PlacedHands, place_hands
from nvf_fast.ops.pool_maps import pool_maps
from nvf_fast.ops.query_field import FieldQuery, query_field
from nvf_fast.ops.ray_mesh import ray_mesh
from nvf_fast.ops.select_voters import Selection, compact, select_voters

__all__ = [
    "Backend",
    "FieldQuery",
    "PlacedHands",
    "Selection",
    "cast_votes",
    "compact",
    "group_norm_relu",
    "join_branches",
    "merge_maps",
    "mesh_distance",
    "network_views",
    "pack_poses",
    "place_hands",
    "pool_maps",
    "query_field",
    "ray_mesh",
    "select_voters",
]
