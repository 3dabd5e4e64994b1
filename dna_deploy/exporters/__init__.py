"""Deployment formats, one file each: EXPORTER writes a network and runs what it wrote."""
