"""What `benchmarks/action_draws.py` compares: training with different numbers of noise draws.

team       processes that hold one model each, or a shard of it, and do as they are told, in turns
stepping   one training step on random samples: what it costs
racing     training on demonstrations for so many seconds: what it buys
data       the demonstrations, and the demo's configuration of a run on them
"""
