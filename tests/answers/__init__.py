"""Answers to the exercises of the lessons, right and wrong, one module a lesson."""

from importlib import import_module
from pkgutil import iter_modules

LESSONS = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
OTHERS = {name: fn for lesson in LESSONS for name, fn in lesson.OTHERS.items()}
MUTANTS = {name: wrong for lesson in LESSONS for name, wrong in lesson.MUTANTS.items()}
NAMES = {lesson.__name__[-2:]: lesson.NAMES for lesson in LESSONS}
