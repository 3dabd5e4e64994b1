"""How the tensorrt profiler and exporter build and run engines."""
