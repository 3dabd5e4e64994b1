"""Search spaces, one file each: SPACE says how its blocks are laid out for an input size and a class count."""
