"""Private names of Inductor's cache of C++ kernels; imported only here.

Inductor compiles a kernel, and waits for it, when it loads the Python module that it has written
for a whole graph. Here each kernel is asked for as soon as its source is known, while Inductor goes
on; and since nothing calls most kernels in this process, one is loaded when it is called, not
before.
"""

# ruff: noqa: SLF001 - that is what this file is for

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final, NamedTuple

from torch._inductor.codecache import CppCodeCache, CppPythonBindingsCodeCache
from torch._inductor.codegen.wrapper import PythonWrapperCodegen
from torch._inductor.utils import IndentedBuffer

from lazyfx.shared.native.kernels import LOAD_ASYNC, bound_arguments, loading_kernels_with

_LOAD_LIBRARY: Final = CppCodeCache._load_library.__func__  # type: ignore[attr-defined]
_BINDING: Final = "async_compile.cpp_pybinding"


class _Built(NamedTuple):
    """A library that has been built, in place of one that has been loaded."""

    path: str
    key: str


FindLibrary = Callable[[], str]
"""Waits until a library has been built; returns its path, or raises what its compile raised."""


@contextmanager
def requesting_kernels(
    submit: Callable[[Callable[[], None]], Any],
    on_use: Callable[[bytes, FindLibrary], None],
    on_failure: Callable[[bytes], None],
) -> Iterator[None]:
    """Within the block, request each kernel as soon as Inductor has written its source.

    Args:
        submit: Runs a compile in another thread; returns its future.
        on_use: Called with the digest of each source that a module of Inductor's uses, and what
            waits for its library.
        on_failure: Called with the digest of a source whose compile has failed, if Inductor was
            told: when it tunes, it goes on without that kernel.
    """

    def load_async(cls: Any, *args: Any, **kwargs: Any) -> Callable[[], Any]:
        given = bound_arguments(cls, args, kwargs)
        given.arguments["submit_fn"] = submit
        load: Callable[[], _Built] = LOAD_ASYNC(*given.args, **given.kwargs)
        source = given.digest

        def built() -> _Built:
            try:
                return load()
            except Exception:
                on_failure(source)
                raise

        def use() -> _UnloadedModule:
            on_use(source, lambda: load().path)
            return kernel

        kernel = _UnloadedModule(cls, built)
        return use

    def define_kernel(self: Any, name: str, body: str, *args: Any, **kwargs: Any) -> Any:
        if body.startswith(_BINDING):
            CppPythonBindingsCodeCache.load_pybinding_async(*_arguments_of(body))
        return original(self, name, body, *args, **kwargs)

    original = PythonWrapperCodegen.define_kernel
    with loading_kernels_with(load_async):
        CppCodeCache._load_library = classmethod(lambda _cls, path, key: _Built(path, key))  # type: ignore[method-assign,assignment]
        PythonWrapperCodegen.define_kernel = define_kernel  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            CppCodeCache._load_library = classmethod(_LOAD_LIBRARY)  # type: ignore[method-assign,assignment]
            PythonWrapperCodegen.define_kernel = original  # type: ignore[method-assign]


@contextmanager
def omitting_kernels() -> Iterator[None]:
    """Within the block, kernels are written and not compiled; calling one raises."""

    def load_async(cls: Any, *_: Any, **__: Any) -> Callable[[], Any]:
        def never() -> _Built:
            raise RuntimeError("this kernel was not compiled")

        return lambda: _UnloadedModule(cls, never)

    with loading_kernels_with(load_async):
        yield


def compile_only(source: str) -> None:
    """Have Inductor compile a source as it compiles kernels with default settings.

    Raises:
        Exception: Whatever the compile raised.
    """
    builds: list[Callable[[], None]] = []
    # Inductor holds the kernel's lock while it submits a build, and a build acquires it.
    LOAD_ASYNC(CppPythonBindingsCodeCache, source, submit_fn=builds.append)
    for build in builds:
        build()


class _UnloadedModule(ModuleType):
    """A kernel that is loaded when its function is called, or anything else of it is needed.

    Args:
        cls: The class of Inductor's cache that it belongs to.
        load: Waits for its library.
    """

    def __init__(self, cls: Any, load: Callable[[], _Built]) -> None:
        super().__init__("lazyfx_unloaded_kernel")
        loaded: list[Any] = []

        def real() -> Any:
            if not loaded:
                loaded.append(_LOAD_LIBRARY(cls, *load()))
            return loaded[0]

        self.__dict__["_real"] = real
        if issubclass(cls, CppPythonBindingsCodeCache):
            entry = cls.entry_function
            self.__dict__[entry] = lambda *args: getattr(real(), entry)(*args)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["_real"](), name)


def _arguments_of(body: str) -> list[Any]:
    """The arguments with which the module that Inductor writes will ask for a kernel.

    The text passes through the same buffer as there, which normalizes its blanks.
    """
    buffer = IndentedBuffer()
    buffer.splice(f"kernel = {body}")
    (statement,) = ast.parse(buffer.getvalue()).body
    assert isinstance(statement, ast.Assign), body[:80]
    assert isinstance(statement.value, ast.Call), body[:80]
    assert not statement.value.keywords, body[:80]
    return [ast.literal_eval(argument) for argument in statement.value.args]
