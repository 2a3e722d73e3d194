"""LeRobotDataset v3.0 on disk: written whole or not at all, read strictly, compressed beside the loop, and mended."""
