"""Infrastructure: CUDA graphs, profiling ranges, autotuning, atomic files."""
