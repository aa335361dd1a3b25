"""The keys of `config.optim` and `config.eval`: how a model is fitted, how it is measured and which step is kept."""

from surm.machine.keys import Key, Section

OPTIM = Section(
    "how it is trained",
    {
        "name": Key(
            "adamw",
            "The optimiser; `loko` is a Kalman filter, whose rates are the variances that it starts from.",
            choices=("adamw", "sgd", "loko"),
        ),
        "learning_rate": Key(
            None, "The highest rate of what the method trains; None is that of the method and the family.", least=0
        ),
        "head_learning_rate": Key(5e-3, "The highest rate of the other trained variables.", least=0),
        "weight_decay": Key(
            0.0, "The weight decay of what the method trains; biases and norms are never decayed.", least=0
        ),
        "head_weight_decay": Key(0.0, "The weight decay of the other trained variables, likewise.", least=0),
        "momentum": Key(0.9, "The momentum of sgd.", least=0, most=1),
        "schedule": Key("cosine", "How the rates go on after the warm-up.", choices=("cosine", "linear", "constant")),
        "warmup_fraction": Key(0.05, "The share of the steps in which the rates rise from 0.", least=0, most=1),
        "gradient_clip": Key(0.0, "The largest norm of a whole gradient; 0 clips nothing.", least=0),
        "label_smoothing": Key(0.0, "The share of a label that is spread over all classes.", least=0, most=1),
        "class_weights": Key(
            "none",
            "The weights of the classes in the loss: `none`; `balanced`, which goes by how rare a class is; numbers in "
            "the order of the classes, such as `1,2.5,1`; or numbers by name, such as `cat=2.5`.",
        ),
        "batch_size": Key(64, "The number of examples in a step.", least=1),
        "accumulation_steps": Key(
            1,
            "The number of parts that a batch is taken in, one after the other: the same step with less memory, but "
            "for dropout, which is drawn anew for every part.",
            least=1,
        ),
        "ema_decay": Key(
            0.0,
            "The decay of an average of the trained arrays, which is what is measured and saved; 0 keeps no average.",
            least=0,
            most=1,
        ),
        "epochs": Key(0, "The length of the run in epochs, if `optim.steps` is 0.", least=0, decision="length"),
        "steps": Key(0, "The length of the run in steps, if `optim.epochs` is 0.", least=0, decision="length"),
        "head_first_fraction": Key(
            None,
            "The share of the steps in which the head trains alone, and after which it rests; 0 trains all the time, "
            "None is the method's own, 0 for most. What rests still counts in `optim.gradient_clip`.",
            least=0,
            most=1,
        ),
    },
)

EVAL = Section(
    "what is measured, and which step is kept",
    {
        "metrics": Key(
            "",
            "The metrics, with commas between, the first of them the main one: accuracy, f1, macro_f1, "
            "balanced_accuracy, matthews, auc; of numbers pearson, spearman. Empty is the task's own.",
        ),
        "choose": Key(
            "last",
            "Whose adapter is saved and measured: that of the `last` step, or that of the `best` main metric or the "
            "`least_loss` on the validation split, which is looked at every `eval_every_steps`. The test split is "
            "measured once, with the chosen adapter.",
            choices=("last", "best", "least_loss"),
        ),
        "patience": Key(
            0,
            "The number of looks at the validation split without a better one that end the run; 0 never does.",
            least=0,
        ),
    },
)
