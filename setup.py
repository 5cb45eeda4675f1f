"""Everything is read from settings.ini; edit that, not this."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=["="], interpolation=None)
ini.read(here / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
words = lambda key: cfg.get(key, "").split()
extras = {key.removesuffix("_requirements"): words(key) for key in cfg if key.endswith("_requirements")}
readme = here / "README.md"

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], keywords=cfg["keywords"],
    author=cfg["author"], author_email=cfg["author_email"], license="Apache-2.0",
    url=f"https://github.com/{cfg['user']}/{cfg['repo']}",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "", long_description_content_type="text/markdown",
    packages=find_packages(include=["clep_tutorial", "clep_tutorial.*"]), python_requires=f">={cfg['min_python']}",
    install_requires=words("requirements"), extras_require=extras,
    entry_points={"console_scripts": words("console_scripts"), "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]},
    classifiers=["Development Status :: 3 - Alpha", "Intended Audience :: Education", "Intended Audience :: Science/Research",
                 "Programming Language :: Python :: 3", "Topic :: Scientific/Engineering :: Artificial Intelligence"],
    zip_safe=False,
)
