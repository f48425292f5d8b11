from setuptools import find_packages, setup

setup(
    name="minti",
    version="0.3.0",
    description="minimal textual inversion: Stable Diffusion v1.4 from scratch, small enough to read in an afternoon",
    license="MIT",
    # The bundled model goes along, so that an installed package finds it as a clone does.
    packages=[*find_packages(include=["minti", "minti.*"]), "minti.toybox"],
    package_dir={"minti.toybox": "weights/toybox"},
    package_data={"minti.toybox": ["*.json", "*/*"]},
    python_requires=">=3.10",
    # The lowest versions that hold together; .ci/versions runs the tests with these and with the newest.
    install_requires=[
        # The newest transformers refuses an older torch, and pip cannot know: torch is none of its requirements.
        "torch>=2.6",
        "transformers>=5",
        "huggingface_hub>=1.3",  # as transformers 5.0 has it; so for safetensors
        "safetensors>=0.4.3",
        "numpy>=1.26",
        "Pillow>=10.1",
        "einops>=0.7",
    ],
    extras_require={
        "examples": ["matplotlib>=3.8"],
        "playground": ["gradio>=6", "pandas>=2.2"],
        "8bit": ["bitsandbytes>=0.45"],  # DreamBooth's optimizer on small memory; on a CPU it takes a newer one
        # Before 0.37, diffusers copies a shortcut's input into another memory layout: its VAE then rounds otherwise.
        "test": [
            "compel>=2.5.1",  # prompt weights
            "diffusers>=0.37",
            "gradio>=6",
            "hypothesis>=6.111",
            "ipykernel>=6",
            "matplotlib>=3.8",
            "nbclient>=0.10",
            "nbformat>=5.9",
            "pandas>=2.2",
            "peft>=0.18",  # which transformers 5.0 asks for, and diffusers less
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.5",
            "ruff>=0.8",
        ],
    },
)
