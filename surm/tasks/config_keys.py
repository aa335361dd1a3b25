"""The keys of `config.optim` and `config.eval`: how a model is trained, how it is evaluated and which step is kept."""

from surm.machine.keys import Key, Section

OPTIM = Section(
    "how it is trained",
    {
        "name": Key(
            "adamw",
            "The optimiser. `loko` is a Kalman filter; the learning rates are its initial variances.",
            choices=("adamw", "sgd", "loko"),
        ),
        "learning_rate": Key(
            None,
            "The peak learning rate of the parameters that the method trains; None is the default of the method and "
            "the family.",
            least=0,
        ),
        "head_learning_rate": Key(
            5e-3, "The peak learning rate of the head and of other variables that train.", least=0
        ),
        "weight_decay": Key(
            0.0, "The weight decay of the parameters that the method trains; biases and norms never decay.", least=0
        ),
        "head_weight_decay": Key(
            0.0,
            "The weight decay of the head and of other variables that train; biases and norms never decay.",
            least=0,
        ),
        "momentum": Key(0.9, "The momentum of sgd.", least=0, most=1),
        "schedule": Key(
            "cosine",
            "How the learning rates change after the warm-up: `cosine` and `linear` decay to 0.",
            choices=("cosine", "linear", "constant"),
        ),
        "warmup_fraction": Key(
            0.05, "The fraction of the steps in which the learning rates rise linearly from 0.", least=0, most=1
        ),
        "gradient_clip": Key(
            0.0, "The largest global norm of the gradient; larger gradients are scaled down. 0 clips nothing.", least=0
        ),
        "label_smoothing": Key(0.0, "The fraction of a label that is spread over all classes.", least=0, most=1),
        "class_weights": Key(
            "none",
            "The weights of the classes in the loss: `none`; `balanced`, which goes by how rare a class is; numbers in "
            "the order of the classes, such as `1,2.5,1`; or numbers by name, such as `cat=2.5`.",
        ),
        "batch_size": Key(64, "The number of examples in a step.", least=1),
        "accumulation_steps": Key(
            1,
            "The number of parts of a batch whose gradients are computed one after another and added up. The step is "
            "the same with less memory, except that dropout masks are drawn separately for every part.",
            least=1,
        ),
        "ema_decay": Key(
            0.0,
            "The decay of an exponential moving average of the trained arrays, which is then evaluated and saved in "
            "their place; 0 keeps no average.",
            least=0,
            most=1,
        ),
        "epochs": Key(0, "The length of the run in epochs, if `optim.steps` is 0.", least=0, decision="length"),
        "steps": Key(0, "The length of the run in steps, if `optim.epochs` is 0.", least=0, decision="length"),
        "head_first_fraction": Key(
            None,
            "The fraction of the steps, at the start, in which only the head trains; afterwards only the parameters of "
            "the method train. 0 trains both all the time; None is the method's own value, which is 0 for most. "
            "Gradients of the part that does not train still count in `optim.gradient_clip`.",
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
            "The metrics, separated by commas, the main one first: accuracy, f1, macro_f1, balanced_accuracy, matthews "
            "or auc for classes, pearson or spearman for numbers. Empty takes the task's own.",
        ),
        "choose": Key(
            "last",
            "The step whose adapter is saved and evaluated: the `last` one, or the one with the `best` main metric or "
            "the `least_loss` on the validation split, which is evaluated every `eval_every_steps`. The test split is "
            "evaluated once, with the chosen adapter.",
            choices=("last", "best", "least_loss"),
        ),
        "patience": Key(
            0,
            "The number of evaluations on the validation split without a better one after which the run ends; 0 never "
            "ends it early.",
            least=0,
        ),
    },
)
