"""Encoders: what turns a row of the tracks table into a vector, one module a kind.

Each is a frozen dataclass that is cheap to make and to send to a Ray actor: it checks its
settings, and loads a model only at the first `encode`, in the actor. All have the same members:

    columns                     of the tracks table that `encode` reads
    dim                         length of a vector
    settings                    everything that changes a vector, hashed into the id
    encoder_id                  `<name>-<hash of the settings>`
    encode(tracks: pa.Table)    for each row a float32 vector, or the reason why there is none

`inputs` tells by a hash which tracks have changed for an encoder since a vector was made.
"""
