"""Only what pyproject.toml cannot say: the zoo in ``models/`` is installed as ``deploykit.models``.

In site-packages a top-level package called ``models`` would collide with the ``models`` that half of all projects have.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["deploykit", "deploykit.*"]), "deploykit.models"],
    package_dir={"deploykit": "deploykit", "deploykit.models": "models"},
    # Not build/, which is where deploykit itself puts its artifacts.
    options={"build": {"build_base": "dist/build"}},
)
