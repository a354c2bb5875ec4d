"""The commands of the command line, one file a room; `ray_jobs.cli` puts them together."""
