"""The demo world: real public-domain tunes, rendered to audio, and simulated listeners."""
