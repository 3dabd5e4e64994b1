"""Find the network for your device: profile its ops, search block-wise under a teacher, export and verify."""

__version__ = "0.1.0"
