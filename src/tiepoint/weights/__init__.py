"""Named checkpoints: origin, licence, hash; fetch, verify, load."""
