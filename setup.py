"""The package's folders; the kernels' lie in `kernels/`, and a wheel holds them in `nvf_fast/kernels/`."""

from setuptools import find_namespace_packages, setup

KERNELS = {f"nvf_fast.kernels.{name}": f"kernels/{name}" for name in find_namespace_packages("kernels")}
PACKAGES = find_namespace_packages(
    include=["nvf_fast*"], exclude=["nvf_fast.weights*", "nvf_fast.assets*", "nvf_fast.kernels.*"]
)

setup(packages=[*PACKAGES, *KERNELS], package_dir=KERNELS)
