"""What `benchmarks/inference.py` and `inference_gpu.py` measure one policy call with.

plain      the plain-transformers-style baseline as a sampler: dynamic cache, masks and positions anew in every step
scene      a robot with as many cameras as asked for, what it sees, and the setting of a call
variants   what is compared: the baseline, our model as it is, and our engine
equal      proves that all of them give the same actions, before anything is timed
timing     calls in turns, stages one by one, percentiles
trial      one variant in a process of its own, for its peak memory
tables     what of it is printed
curves     cost against views, steps, chunk and batch, and the picture of it
floor      operations and bytes of every stage, and what this device needs for them
effects    what fewer or other steps do to the actions of a trained policy
pi0        LeRobot's `pi0` at its own size, where LeRobot is installed
"""
