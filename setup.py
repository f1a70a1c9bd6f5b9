"""What setup.cfg cannot say: the folder `configs` of the checkout is a part of the package."""

from setuptools import find_packages, setup


setup(packages=[*find_packages(include=["trl_fork", "trl_fork.*"]), "trl_fork.configs"])
