"""LeRobot datasets: reading, recording, a decoded-frame cache, statistics, windows and the training stream."""
