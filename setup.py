"""Installs the library in place: ``pip install -e .``, with what its tests need ``".[dev]"``.

Top-level names such as ``datasets`` and ``clip`` are this field's convention and are not meant to
be copied into site-packages, so the editable install is the only one that is offered.
"""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
ROOMS = ("configs", "dassl", "clip", "trainers", "datasets", "experiments", "inference")

# What some commands of inference/ and experiments/ need, and nothing else does; only the locked
# versions have been tried.
EXTRAS = {
    "demo": ["gradio>=6.31,<7"],
    # writes and runs ONNX; Python 3.10 has none of these
    "export": [
        f"{line}; python_version >= '3.11'"
        for line in ("onnx>=1.23,<2", "onnxruntime>=1.32,<2", "onnxscript>=0.7.2,<1", "torch>=2.14")
    ],
    "ray": ["ray[default]>=2.50,<3"],
    "report": ["jinja2>=3.1.6,<4"],
    "serve": [
        "fastapi>=0.115,<1",
        "fastapi-offline>=1.7,<2",
        "python-multipart>=0.0.20,<0.1",
        "uvicorn>=0.34,<1",
    ],
    "slurm": ["submitit>=1.5,<2"],
    "tune": ["optuna>=5,<6"],
}
# What TRACKER names; the tests have stand-ins.
TRACKERS = {
    "mlflow": ["mlflow>=3.17,<4"],
    "trackio": ["trackio>=0.43,<0.44"],
    "wandb": ["wandb>=0.31,<0.32"],
}
# Their tests ask a service and look at a page in a browser.
CLIENTS = ["httpx>=0.28,<1", "playwright>=1.60,<2"]

lines = (HERE / "requirements.txt").read_text(encoding="utf-8").splitlines()

setup(
    name="clip-prompt-learning",
    version="0.2.0",
    description="Prompt learning for frozen CLIP models: one prompt hook, one file a method",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=[*ROOMS, *(f"{room}.*" for room in ROOMS)]),
    py_modules=["train"],  # Classifier.fit, wherever Python was started
    install_requires=[line for line in lines if line and not line.startswith("#")],
    extras_require={
        "dev": [
            "pytest>=8,<10",
            "pytest-xdist>=3.8,<4",
            "ruff>=0.14,<0.18",
            "mypy>=1.18,<3",
            "torchmetrics>=1.5,<2",
            "hypothesis>=6.140,<7",
        ],
        "docs": ["mkdocs-material>=9.6,<10"],
        **EXTRAS,
        **TRACKERS,
        "test": [line for extra in EXTRAS.values() for line in extra] + CLIENTS,
        # renders what ViT-Mini-2 is trained on; its optimizer came with PyTorch 2.9
        "vit_mini": ["resvg-py>=0.5,<1", "torch>=2.9"],
    },
)
