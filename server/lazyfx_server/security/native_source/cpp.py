"""Checks generated C++, tokenized as a compiler does: directives, comments, literals, names."""

# ruff: noqa: SIM905 - long lists of names are most readable as words

from __future__ import annotations

import re
from typing import Final

from lazyfx_server.security.native_source.refusal import is_plain_literal, refuse

_TOKEN: Final = re.compile(
    r"""
    (?P<directive>^[ \t]*\#(?:[^\n\\]|\\\n|\\)*)
    |(?P<space>[ \t]+|\n+)
    |(?P<comment>//[^\n]*|/\*(?:[^*]|\*(?!/))*\*/)
    |(?P<raw>R"(?P<delimiter>[A-Za-z0-9_]{0,16})\((?P<inner>.*?)\)(?P=delimiter)")
    |(?P<string>"(?:[^"\\\n]|\\[^\n])*")
    |(?P<character>'(?:[^'\\\n]|\\[nt0'\\])')
    |(?P<number>\.?[0-9](?:[eEpP][+-]|[A-Za-z0-9_.])*)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<punctuation>[{}()\];:,.?~!%^&*+=|<>-]+|\[|/(?![/*]))
    """,
    re.VERBOSE | re.MULTILINE | re.DOTALL | re.ASCII,
)
# Control characters, Unicode line separators, trigraphs, and digraphs of # and of brackets.
_NOWHERE: Final = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f\x85\u2028\u2029]|\?\?[=/'()!<>-]|%:|<:(?!:[^:>])|:>"
)
_SPLICE: Final = re.compile(r"\\[ \t]*(?:\n|$)")
_RAW: Final = re.compile(r'[A-Za-z0-9_ .,:\[\]{}"\n]*', re.ASCII)

STANDARD_HEADERS: Final = (
    "algorithm array atomic cassert cerrno cfloat chrono climits cmath complex cstddef cstdint "
    "cstdio cstdlib cstring exception functional initializer_list iomanip iostream iterator limits "
    "list map memory mutex new numeric optional ostream queue set sstream stdexcept string "
    "string_view thread tuple type_traits typeinfo unordered_map unordered_set utility variant "
    "vector Python.h cuda.h omp.h immintrin.h arm_neon.h arm_sve.h"
).split()
"""Headers of the compiler, the system and Python that a source may include; not each machine has
all. The others are torch's."""
_HEADER: Final = re.compile(
    rf"#include <(?:{'|'.join(map(re.escape, STANDARD_HEADERS))}"
    r"|(?:torch|ATen|c10)(?:/[A-Za-z0-9_]{1,60}){1,8}\.h(?:pp)?)>"
)
_PRAGMA: Final = re.compile(
    r"#pragma (?:once|GCC ivdep|(?:GCC )?unroll(?: [0-9]{1,4}|\([0-9]{1,4}\))?"
    r"|omp (?:parallel|for|single|simd|barrier|critical|master|atomic|task|taskwait|parallel for)"
    r"(?: ?(?:num_threads|schedule|collapse|reduction|simdlen|private|firstprivate|nowait|shared|"
    r"default|aligned)(?:\([A-Za-z0-9_+*:,| &-]{1,200}\))?,?)*)"
)
_CONDITION: Final = re.compile(r"#(?:if|ifdef|ifndef|elif|else|endif)\b[A-Za-z0-9_ ()!&|<>=.]*")
_MACRO: Final = re.compile(
    r"#define (?:PY_SSIZE_T_CLEAN|CONVERT_EXCEPTION_TO_ERROR_CODE\(\.\.\.\)"
    r"|AOTI_VECTOR_SIZE_CHECK\([a-z_, ]{1,60}\)|ATTRIBUTE_NO_SANITIZE_ADDRESS"
    r"|CUDA_DRIVER_CHECK\([A-Za-z]{1,20}\))(?: |$)"
)
_COMMENT_AT_END: Final = re.compile(r" (?://.*|/\*(?:[^*]|\*(?!/))*\*/)$")
_SPLICE_AND_BLANKS: Final = re.compile(r"\\[ \t]+$")

_ATTRIBUTE: Final = re.compile(
    r"__attribute__ ?\(\( ?(?:noinline|always_inline|unused|no_sanitize\(\"address\"\)"
    r"|aligned\([0-9]{1,4}\)) ?\)\)"
)
_ATTRIBUTES: Final = re.compile(r"\[\[(?:maybe_unused|unlikely|likely|nodiscard)\]\]")
_NEVER: Final = frozenset(
    # Assembly, and what controls the preprocessor or the linker from within the source.
    "asm _asm __asm __asm__ _Pragma __pragma __declspec __attribute import export "
    "__has_include __has_include_next __has_embed __include_level__ __extension__ "
    # Processes, files, executable memory, and the dynamic linker.
    "system popen fork vfork execv execve execvp execvpe execl execle execlp fexecve posix_spawn "
    "posix_spawnp dlopen dlmopen dlsym mmap mprotect mremap syscall socket connect bind listen "
    "accept ptrace kill signal sigaction fopen freopen fdopen open openat creat unlink rename "
    "chmod ifstream ofstream fstream filebuf setenv putenv secure_getenv "
    # Python from inside a binding.
    "PyRun_SimpleString PyRun_String PyRun_File PyRun_AnyFile PyEval_EvalCode Py_CompileString "
    "PyImport_Import PyImport_ExecCodeModule PyObject_CallFunction "
    "PyMarshal_ReadObjectFromString".split()
)
# Variants of these, and libraries that provide them under other names.
_NEVER_LIKE: Final = re.compile(
    r"(?:PyRun_|PyMarshal_|PyEval_Eval|Py_Compile|PyImport_Exec|__builtin_|__libc_|_dl_|exec[lv]"
    r"|posix_spawn|process_vm_|memfd_|pkey_)\w*"
    r"|(?:open|openat|fopen|freopen|creat|mmap|truncate|ftruncate|mkstemp|tmpfile|sendfile)64"
    r"|PyObject_Call(?:Method|MethodObjArgs|FunctionObjArgs)?|PyImport_AddModule\w*"
    r"|dlvsym|dladdr1?|dlinfo|dl_iterate_phdr|clone3?|prctl|openat2|sendfile|mkstemp|tmpfile"
    r"|truncate|ftruncate|symlink|link|mount|chroot|chown|tgkill|tkill|pthread_kill|raise"
    r"|DynamicLibrary|filesystem|jit|pickle_load|pickle_save|load_library|pybind11_exec"
)
# Members of namespaces that kernels use, but which kernels do not use themselves.
_NEVER_OF: Final = re.compile(r"(?:pybind11|py)\s*::\s*(?:exec|eval|eval_file|module_|module)\b")

_BETWEEN: Final = frozenset({"space", "comment"})
_ALWAYS: Final = frozenset({"space", "character", "punctuation"})
_QUOTES: Final = frozenset({'"', "'"})


def check_cpp(source: str) -> None:
    """Check one C++ source.

    Args:
        source: The source as passed to the compiler.

    Raises:
        NativeSourceRefused: It contains something that the templates do not write; names the line.
    """
    if found := _NOWHERE.search(source):
        raise refuse("a character that is not allowed in C++ source", source, found.start())
    _check_tokens(source)


def _check_tokens(source: str) -> None:
    position = 0
    open_bracket = False
    for found in _TOKEN.finditer(source):
        if found.start() != position:
            break
        kind, text = found.lastgroup, found[0]
        if kind not in _ALWAYS and (reason := _reason(str(kind), found)):
            raise refuse(reason, source, position)
        if text == "[" and open_bracket and not _ATTRIBUTES.match(source, position - 1):
            raise refuse("an unknown attribute", source, position)
        if kind not in _BETWEEN:
            open_bracket = text == "["
        position = found.end()
    if position != len(source):
        raise refuse("an invalid token", source, position)


def _reason(kind: str, found: re.Match[str]) -> str:
    """Why a token is refused; "" if it is allowed."""
    text = found[0]
    if kind == "name":
        return _reason_of_name(text, found)
    if kind == "number":
        # A digit separator would be read as the start of a character literal.
        return (
            "a number with digit separators"
            if found.string[found.end() : found.end() + 1] == "'"
            else ""
        )
    if kind == "string":
        return "" if is_plain_literal(text[1:-1]) else "an unknown string"
    if kind == "comment":
        return "a comment continued on the next line" if _SPLICE.search(text) else ""
    if kind == "directive":
        return _reason_of_directive(text)
    return "" if _RAW.fullmatch(found["inner"]) else "an unknown raw string"


def _reason_of_name(name: str, found: re.Match[str]) -> str:
    source, end = found.string, found.end()
    if name == "__attribute__":
        return "" if _ATTRIBUTE.match(source, found.start()) else "an unknown attribute"
    if name in _NEVER or _NEVER_LIKE.fullmatch(name) or _NEVER_OF.match(source, found.start()):
        return "a name that kernels do not use"
    # A literal prefix, or an unterminated raw string.
    return "an unknown literal" if source[end : end + 1] in _QUOTES else ""


def _reason_of_directive(text: str) -> str:
    if _SPLICE_AND_BLANKS.search(text):
        return "a directive continued on the next line"
    # Like a compiler, join continued lines before reading anything.
    line = re.sub(r"[ \t]+", " ", text.replace("\\\n", "")).strip(" ")
    line = "#" + line[1:].lstrip(" ")
    if macro := _MACRO.match(line):
        body = line[macro.end() :]
        if "[" in body:
            return "a macro that could produce an attribute"
        _check_tokens(body)
        return ""
    if "__has" in line:
        return "an unknown directive"
    line = _COMMENT_AT_END.sub("", line)
    known = (_HEADER, _PRAGMA, _CONDITION)
    return "" if any(each.fullmatch(line) for each in known) else "an unknown directive"
