"""The plain-transformers-style baseline, and what `benchmarks/training.py` and `training_gpu.py` measure it with.

plain      the baseline: the same weights and the same maths, joined from stock modules of transformers in the plain way
equal      proves that it computes what ours computes, before anything is timed
sizes      models and batches of full token counts, from tiny to 3B
variants   what is compared, and one training step of each
trial      one variant in a process of its own, for its peak memory
"""
