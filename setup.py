"""Packaging of ciruela: the programs, their libraries, and the twistd plugin.

Everything lives here rather than in ``pyproject.toml`` because the plugin is a module in another project's package
(``twisted.plugins``), which needs ``packages`` to be named one by one.
"""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION: dict[str, str] = {}
exec((HERE / "ciruela" / "_version.py").read_text(encoding="utf-8"), VERSION)  # noqa: S102

DEV = [
    "argparse-manpage>=4.6",
    "build>=1.2.2",
    "coverage>=7.13",  # the first release whose wheel carries the .pth file that measures child processes
    "furo>=2024.8",
    "hypothesis>=6.120",
    "import-linter>=2.1",
    "mypy>=1.15",
    "mypy-zope>=1.0.9",
    "pycddl>=0.6.4",
    "ruff>=0.9",
    "sphinx>=8",
    "towncrier>=24.8",
    "tox>=4.24",
    "types-PyYAML>=6.0.12",
]

setup(
    name="ciruela",
    version=VERSION["__version__"],
    description="Puts a whole directory on every server of a cluster: signed, verified, atomic",
    long_description=(HERE / "README.rst").read_text(encoding="utf-8"),
    long_description_content_type="text/x-rst",
    license="MIT",
    python_requires=">=3.11",
    packages=[*find_packages(include=["ciruela", "ciruela.*"]), "twisted.plugins"],
    data_files=[("share/man/man1", sorted(str(path.relative_to(HERE)) for path in (HERE / "docs" / "man").glob("*.1")))],
    package_data={"ciruela": ["py.typed"], "twisted": ["plugins/ciruela_plugin.py"]},
    install_requires=[
        "Automat>=24.8.1",
        "Twisted[tls,conch]>=24.11",
        "autobahn[twisted]>=25.11.1",  # wheels with native code for every supported Python; without it websockets are 40 times slower
        "bcrypt>=4.0",
        "blake3>=1.0",
        "cbor2>=5.9",
        "cryptography>=44",
        "pathspec>=0.12",
        "pynacl>=1.5",
        "pyopenssl>=24.3",
        "PyYAML>=6.0.2",
        "rich>=13.9",
        "service-identity>=24.2",
        "shtab>=1.7",
        "treq>=24.9",
        "zstandard>=0.23",
    ],
    extras_require={"dev": DEV},
    entry_points={
        "console_scripts": [
            "ciruela = ciruela.client.start:ciruela",
            "ciruela-sync = ciruela.client.start:ciruela_sync",
            "ciruela-server = ciruela.daemon.serve:main",
        ]
    },
    classifiers=[
        "Environment :: No Input/Output (Daemon)",
        "Framework :: Twisted",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: System :: Software Distribution",
        "Typing :: Typed",
    ],
    zip_safe=False,
)
