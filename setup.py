"""Build the package from settings.ini, which is the single source of its metadata."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read("settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
extras = {key.removesuffix("_requirements"): cfg[key].split() for key in cfg if key.endswith("_requirements")}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    keywords=cfg["keywords"],
    packages=find_packages(include=[cfg["lib_name"], f"{cfg['lib_name']}.*"]),
    package_data={cfg["lib_name"]: ["py.typed", "**/*.yml", "**/*.json", "**/*.safetensors"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbmf_research.block_codecs": ["neural = nbmf_research.neural.streams:RecordingBlock"],
        "zarr.codecs": ["nbmf_research.neural = nbmf_research.neural.zarr:NeuralCodec"],
        "numcodecs.codecs": ["nbmf_research.neural = nbmf_research.neural.numcodecs:NeuralCodec"],
    },
)
