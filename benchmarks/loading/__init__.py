"""What `benchmarks/data_loading.py` measures: generated datasets, the loaders, and the processes they run in."""
