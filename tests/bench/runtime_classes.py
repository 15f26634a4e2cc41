"""Imports modules and says which classes there are afterwards: the run-time side of a comparison with the index.

A program to be started in a process of its own, since it imports whatever it is told to. It needs nothing but the
standard library, reads one JSON request a line from standard input, and answers each with one JSON line on what was
standard output (the imported modules' own output goes to standard error):

- request ``{"path", "modules", "folders", "bases", "environment", "forget"}``: entries to put first on ``sys.path``;
  modules to import, in this order; the folders whose classes matter; dotted names of base classes; environment
  variables; the top-level package to unload first. All but ``modules``, ``folders`` and ``bases`` may be left out.
- ``{"importing": module}`` before each import, so that a module that ends the process is known by name;
- answer ``{"errors", "bases", "classes"}``: the text of each exception, by module; what kept a base from being
  resolved, by name; and the classes. A class is ``{"file", "line", "module", "qualname", "of", "is_abstract"}``:
  ``file`` and ``line`` (that of its first decorator, if any) are null where no class statement made it, ``of`` holds
  the positions of the bases that it is a strict subclass of.
"""

import builtins
import importlib
import inspect
import json
import os
import signal
import sys
import traceback

_SECONDS_PER_MODULE = 120

_build_class = builtins.__build_class__
# Strong references: a class that the module itself drops again was there all the same.
_created = []


def _remember_class(function, name, /, *bases, **keywords):
    result = _build_class(function, name, *bases, **keywords)
    if isinstance(result, type):
        _created.append((result, function.__code__.co_filename, function.__code__.co_firstlineno))
    return result


def _time_out(signum, frame):
    raise TimeoutError(f"not imported within {_SECONDS_PER_MODULE} s")


def _import_all(modules, say):
    errors = {}
    for module in modules:
        say({"importing": module})
        signal.alarm(_SECONDS_PER_MODULE)
        try:
            importlib.import_module(module)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit and pytest's outcomes too: all are reported
            errors[module] = "".join(traceback.format_exception_only(error)).strip()
        finally:
            signal.alarm(0)
    return errors


def _resolve(name):
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:length])
        if module not in sys.modules:
            try:
                importlib.import_module(module)
            except ImportError:
                continue
        value = sys.modules[module]
        for part in parts[length:]:
            value = getattr(value, part)
        return value
    raise ImportError(f"no module of {name} can be imported")


def _all_subclasses(base):
    found, stack = {}, [base]
    while stack:
        for cls in type.__subclasses__(stack.pop()):
            if id(cls) not in found:
                found[id(cls)] = cls
                stack.append(cls)
    return found


def _is_abstract(cls):
    return inspect.isabstract(cls) or cls.__dict__.get("_is_protocol", False) is True


def _answer(request, say):
    sys.path[:0] = [entry for entry in request.get("path", []) if entry not in sys.path]
    os.environ.update(request.get("environment", {}))
    forgotten = request.get("forget")
    if forgotten:
        for name in [n for n in sys.modules if n == forgotten or n.startswith(f"{forgotten}.")]:
            del sys.modules[name]
        _created.clear()
    importlib.invalidate_caches()
    errors = _import_all(request["modules"], say)
    unresolved = {}
    subclasses = []
    for name in request["bases"]:
        try:
            base = _resolve(name)
        except Exception as error:  # noqa: BLE001 - importing its module may raise anything
            unresolved[name] = "".join(traceback.format_exception_only(error)).strip()
        else:
            if isinstance(base, type):
                subclasses.append(_all_subclasses(base))
                continue
            unresolved[name] = f"{base!r} is no class"
        subclasses.append({})
    made = {id(cls): (cls, file, line) for cls, file, line in _created}
    for of_base in subclasses:
        for key, cls in of_base.items():
            made.setdefault(key, (cls, None, None))
    folders = tuple(os.path.join(os.path.realpath(folder), "") for folder in request["folders"])
    classes = []
    for key, (cls, file, line) in made.items():
        real = os.path.realpath(file) if file else None
        if real is not None and not real.startswith(folders):
            continue
        classes.append(
            {
                "file": real,
                "line": line,
                "module": str(cls.__module__),
                "qualname": cls.__qualname__,
                "of": [position for position, of_base in enumerate(subclasses) if key in of_base],
                "is_abstract": _is_abstract(cls),
            }
        )
    return {"errors": errors, "bases": unresolved, "classes": classes}


def main():
    """Answer requests until there are no more."""
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)
        builtins.__build_class__ = _remember_class
        signal.signal(signal.SIGALRM, _time_out)
        requests = os.fdopen(os.dup(0))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv[1:] = []

        def say(message):
            answers.write(json.dumps(message) + "\n")
            answers.flush()

        for line in requests:
            say(_answer(json.loads(line), say))


if __name__ == "__main__":
    main()
