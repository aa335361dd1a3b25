"""The keys that say how a run is carried out: those at the top level of a config, and those of `config.mesh`."""

from surm.machine.keys import Key, Section

RUN = Section(
    "the run itself",
    {
        "seed": Key(0, "The seed of the order of examples, of dropout and of random initial values.", least=0),
        "init_adapter": Key(
            "",
            "The adapter to start from: the folder of a run, of a surm adapter, or of a Hugging Face PEFT adapter; "
            "empty starts from a fresh adapter.",
        ),
        "log_every_steps": Key(
            10, "The number of steps between two lines of training metrics.", least=1, decision="free"
        ),
        "eval_every_steps": Key(
            0,
            "The number of steps between two evaluations on the held-out split; 0 evaluates it at the end only.",
            least=0,
            decision="choice",
        ),
        "checkpoint_every_steps": Key(
            200,
            "The number of steps between two checkpoints; 0 saves one at the end only. A run that is asked to stop "
            "saves one too.",
            least=0,
            decision="free",
        ),
        "keep_checkpoints": Key(2, "The number of the newest checkpoints that are kept.", least=1, decision="free"),
        "keep_best_checkpoints": Key(
            0,
            "The number of further checkpoints that are kept: the best by the main metric of those that were saved "
            "right after an evaluation.",
            least=0,
            decision="free",
        ),
        "writers": Key(
            "",
            "Where the metrics are written beside metrics.jsonl: `tensorboard`, `wandb` or `tensorboard,wandb`.",
            decision="free",
        ),
        "profile_steps": Key(
            0,
            "The number of steps, after the first three, that JAX's profiler traces into the run's folder `profile`.",
            least=0,
            decision="free",
        ),
        "population": Key(
            "",
            "Runs that train together as one program, such as `seed=0|1|2,learning_rate=1e-3|3e-3`; empty is one run.",
        ),
        # Another number of members is another program with other rounding, so the key changes the result.
        "members_at_once": Key(
            0,
            "The number of members of a population that a step computes at the same time; 0 is one on a CPU, and all "
            "elsewhere.",
            least=0,
        ),
    },
)

_REST = (-1, "all that are left")

# Another number of devices changes the order of sums and thereby their rounding, so every key changes the result.
MESH = Section(
    "how the devices are used (docs/pods.md)",
    {
        "data": Key(-1, "The number of devices that every batch is spread over.", least=1, beside=_REST),
        "model": Key(
            1,
            "The number of devices that share each part of a batch, for batches that do not divide among all devices: "
            "on 8 devices a batch of 12 needs `mesh.data=4` and `mesh.model=2`.",
            least=1,
            beside=_REST,
        ),
        "shard_base": Key(
            False, "Whether the frozen base is spread over all devices, for a base that is too large for one."
        ),
        "shard_members": Key(
            False,
            "Whether the members of a population, instead of the parts of a batch, are spread over the devices of "
            "`mesh.data`.",
        ),
    },
)
