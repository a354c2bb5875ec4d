"""Encoders of audio and text in plain torch: reference implementations, their fast paths on a GPU,
packing of texts, pooling. From tensors to vectors; files, tokens and Ray are in `ray_jobs`."""
