"Package metadata; every value is read from settings.ini, the one place where it is kept."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]

STATUS = ["1 - Planning", "2 - Pre-Alpha", "3 - Alpha", "4 - Beta", "5 - Production/Stable"]
PYTHON = "Programming Language :: Python :: "
oldest = int(cfg["min_python"].split(".")[1])

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    license="Apache-2.0",
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    keywords=cfg["keywords"],
    packages=find_packages(include=["advinterp", "advinterp.*"]),
    package_data={"advinterp": ["**/*.csv", "**/*.json"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={
        "dev": cfg["dev_requirements"].split(),
        "serve": cfg["serve_requirements"].split(),
        "peers": cfg["peers_requirements"].split(),
    },
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"],
    },
    include_package_data=True,
    zip_safe=False,
    classifiers=[
        f"Development Status :: {STATUS[int(cfg['status']) - 1]}",
        f"Intended Audience :: {cfg['audience']}",
        "License :: OSI Approved :: Apache Software License",
        "Natural Language :: English",
        *(f"{PYTHON}3.{minor}" for minor in range(oldest, oldest + 3)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
