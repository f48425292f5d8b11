from setuptools import find_packages, setup

setup(
    name="minti",
    version="0.1.0",
    description="minimal textual inversion: Stable Diffusion v1.4 from scratch, small enough to read in an afternoon",
    license="MIT",
    # The bundled model goes along, so that an installed package finds it as a clone does.
    packages=[*find_packages(include=["minti", "minti.*"]), "minti.toybox"],
    package_dir={"minti.toybox": "weights/toybox"},
    package_data={"minti.toybox": ["*.json", "*/*"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.4,<2.14",
        "transformers>=5,<6",
        "safetensors>=0.4",
        "numpy>=1.26",
        "Pillow>=10.1",
        "einops>=0.7",
    ],
    extras_require={
        "examples": ["matplotlib>=3.8"],
        "test": ["matplotlib>=3.8", "pytest>=8", "diffusers>=0.35", "ruff>=0.8"],
    },
)
