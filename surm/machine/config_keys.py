"""The keys that say how a run is carried out: those of no section, and those of `config.mesh`."""

from surm.machine.keys import Key, Section

RUN = Section(
    "the run itself",
    {
        "seed": Key(0, "The seed of the order of examples, of dropout and of all that starts at random.", least=0),
        "init_adapter": Key(
            "", "The adapter to start from: the folder of a run or of an adapter, of ours or of Hugging Face's PEFT."
        ),
        "log_every_steps": Key(10, "How often the training metrics are written.", least=1, decision="free"),
        "eval_every_steps": Key(
            0, "How often the held-out split is measured; 0 measures it at the end only.", least=0, decision="choice"
        ),
        "checkpoint_every_steps": Key(
            200,
            "How often a checkpoint is saved; 0 saves one at the end only. A run that is asked to stop saves one too.",
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
            "What shows the metrics beside metrics.jsonl: `tensorboard`, `wandb` or `tensorboard,wandb`.",
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
        # Another number of members is another program, which rounds otherwise: the key decides.
        "members_at_once": Key(
            0,
            "The number of members of a population that a step computes side by side; 0 is one on a CPU, else all.",
            least=0,
        ),
    },
)

_REST = (-1, "all that is left")

# Sums over another number of devices are taken in another order, and so are rounded otherwise: every key decides.
MESH = Section(
    "how the devices are used (docs/pods.md)",
    {
        "data": Key(-1, "The number of devices that every batch is spread over.", least=1, beside=_REST),
        "model": Key(
            1,
            "The number of devices that have one part of a batch together, over which a frozen base is spread.",
            least=1,
            beside=_REST,
        ),
        "shard_base": Key(False, "Whether the frozen base is spread over all devices, for a base too large for one."),
        "shard_members": Key(
            False, "Whether the devices of `mesh.data` hold the members of a population, instead of parts of a batch."
        ),
    },
)
