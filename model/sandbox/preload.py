"""What every program finds imported already: the standard library and, where asked for, whole packages.

Importing is what costs most, so it is done once, before privileges are dropped: afterwards the interpreter's own
folder may be out of reach, or every path may be. Where it stays readable only what many programs use is imported,
since every fork pays for the memory of the rest. Modules that make windows, servers or tests are left to the import
system, and so are missing where no file can be read.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

_OFTEN_USED = """
    _strptime abc array bisect calendar cmath collections collections.abc contextlib copy dataclasses datetime decimal
    enum fractions functools hashlib heapq io itertools json json.decoder json.encoder locale math numbers operator os
    queue random re statistics string struct sys textwrap threading time traceback types typing unicodedata warnings
    weakref zlib
    """.split()  # noqa: SIM905 (a list of a hundred lines is not easier to read)
# Seldom used and large, or with side effects on import.
_LEFT_OUT = frozenset(
    """
    antigravity this idlelib tkinter turtle turtledemo test lib2to3 ensurepip venv msilib winreg winsound msvcrt nt
    pydoc pydoc_data distutils curses dbm nntplib telnetlib imaplib smtplib poplib ftplib xmlrpc wsgiref cgi cgitb
    crypt spwd nis ossaudiodev audioop sndhdr imghdr uu xdrlib chunk aifc sunau pipes mailcap mailbox webbrowser
    sqlite3 ssl socketserver http doctest pdb profile cProfile trace tracemalloc unittest readline multiprocessing
    zipapp py_compile compileall tabnanny pyclbr modulefinder symtable rlcompleter pty tty lzma bz2 tarfile zipfile
    """.split()  # noqa: SIM905
)
_SUBMODULES = """
    _strptime collections.abc concurrent.futures concurrent.futures.thread importlib.abc importlib.machinery
    importlib.util json.decoder json.encoder json.scanner os.path urllib.parse encodings.ascii encodings.latin_1
    encodings.cp1252 encodings.utf_8_sig encodings.utf_16 encodings.utf_16_le encodings.utf_16_be encodings.utf_32
    encodings.idna encodings.punycode encodings.hex_codec encodings.base64_codec encodings.rot_13
    encodings.unicode_escape encodings.raw_unicode_escape encodings.gbk encodings.gb18030 encodings.big5
    encodings.shift_jis encodings.euc_jp encodings.euc_kr
    """.split()  # noqa: SIM905


def preload(packages: Sequence[str], packages_from: Sequence[str], *, whole: bool) -> list[str]:
    """Imports the library (`whole`, or what is often used), then `packages` found in `packages_from`; returns the
    folders of these packages.

    Raises ImportError for a package that is not there; a part of the library may be missing.
    """
    library = sorted(name for name in sys.stdlib_module_names - _LEFT_OUT if not name.startswith("_"))
    for name in [*library, *_SUBMODULES] if whole else _OFTEN_USED:
        _import_if_there(name)
    ctypes.CDLL("libgcc_s.so.1")  # libc opens it when a thread ends, and could not then
    sys.path.extend(packages_from)
    try:
        return [folder for name in packages for folder in _import_whole(name)]
    finally:
        del sys.path[len(sys.path) - len(packages_from) :]


def _import_if_there(name: str) -> None:
    try:
        importlib.import_module(name)
    except (ImportError, OSError):  # not built here, or without its shared library
        return


def _import_whole(name: str) -> list[str]:
    """Its lazily imported parts too, since nothing may be readable later."""
    package = importlib.import_module(name)
    for attribute in dir(package):
        part = getattr(package, attribute, None)
        if isinstance(part, ModuleType):
            _import_if_there(part.__name__)
    folders = [Path(os.path.realpath(folder)) for folder in getattr(package, "__path__", [])]
    libraries = [folder.with_name(f"{folder.name}.libs") for folder in folders]  # where wheels put theirs
    return [str(folder) for folder in [*folders, *libraries] if folder.is_dir()]
