"""The web page at `/`: a listener, the ranking, why a track, and the tree of semantic IDs."""
