"""Encoders: what turns a row of the tracks table into a vector, one module a kind.

Each is a frozen dataclass that is cheap to make and to send to a Ray actor: it checks its
settings, and loads a model only at the first `encode`, in the actor. All have the same members:

    columns                     of the tracks table that it reads
    dim                         length of a vector
    settings                    everything that changes a vector, hashed into the id
    encoder_id                  `<name>-<hash of the settings>`
    encode(rows: pa.Table)      for each row a float32 vector, or the reason why there is none
    begin(rows: pa.Table)       optional: starts the work of `encode` on a device; the call that
                                it returns waits for what `encode` gives

`rows` are tracks, or where there is work for CPUs that a GPU must not wait for, what this makes of
them in a process of its own:

    prepare(tracks: pa.Table)   the same rows in the same order: `track_id`; `input`, a list of
                                int16 samples or token ids; `error`, null or why there is no input;
                                and facts that are kept with the vector. `n_tokens` and `seconds`
                                among them are counted in the job's rates.

`choose` makes an encoder from its name. `pipeline` holds the stages that the job runs, `inputs`
tells by a hash which tracks have changed for an encoder since a vector was made.
"""
