"""Hand-written `run` functions and what the tests of native calls share."""

import functools

import numpy as np

from graphkb.codegen.engine import compile_module
from graphkb.codegen.target import host_target
from graphkb.runtime.native_call import CallSpec

F4 = ("float32", (4,))
SCALAR = ("int64", ())
GOOD = np.arange(4, dtype=np.float32)


def elementwise(name, inputs, type_, op, n):
    """IR of `run`: the first output is the inputs joined by `op`, for `n` elements of the LLVM type `type_`."""
    loads = "".join(
        f"""
  %at{k} = getelementptr ptr, ptr %args, i64 {k}
  %p{k} = load ptr, ptr %at{k}
  %e{k} = getelementptr {type_}, ptr %p{k}, i64 %i
  %v{k} = load {type_}, ptr %e{k}"""
        for k in range(inputs)
    )
    sums = "".join(f"\n  %s{k} = {op} {type_} {f'%s{k - 1}' if k > 1 else '%v0'}, %v{k}" for k in range(1, inputs))
    return f"""
define i32 @{name}(ptr %args, ptr %workspace) {{
start:
  br label %test
test:
  %i = phi i64 [ 0, %start ], [ %i.next, %body ]
  %done = icmp eq i64 %i, {n}
  br i1 %done, label %end, label %body
body:{loads}{sums}
  %to.at = getelementptr ptr, ptr %args, i64 {inputs}
  %to.p = load ptr, ptr %to.at
  %to = getelementptr {type_}, ptr %to.p, i64 %i
  store {type_} %s{inputs - 1}, ptr %to
  %i.next = add i64 %i, 1
  br label %test
end:
  ret i32 0
}}
"""


# Counts its input's value down in the workspace and gives back the count of steps: slow, and it shows shared scratch.
# `tick` adds one to the bound word, with the same delay between the load and the store. `gate` shows that it has begun
# in the second bound word, waits for the first one, then gives back its input. `decline` takes even numbers
# only.
SLOW = """
define i32 @spin(ptr %args, ptr %workspace) {
start:
  %n.p = load ptr, ptr %args
  %n = load i64, ptr %n.p
  store volatile i64 0, ptr %workspace
  br label %test
test:
  %i = phi i64 [ 0, %start ], [ %i.next, %body ]
  %done = icmp eq i64 %i, %n
  br i1 %done, label %end, label %body
body:
  %seen = load volatile i64, ptr %workspace
  %more = add i64 %seen, 1
  store volatile i64 %more, ptr %workspace
  %i.next = add i64 %i, 1
  br label %test
end:
  %steps = load volatile i64, ptr %workspace
  %to.at = getelementptr ptr, ptr %args, i64 1
  %to = load ptr, ptr %to.at
  store i64 %steps, ptr %to
  ret i32 0
}

define i32 @tick(ptr %args, ptr %workspace) {
start:
  %n.p = load ptr, ptr %args
  %n = load i64, ptr %n.p
  %word.at = getelementptr ptr, ptr %args, i64 1
  %word = load ptr, ptr %word.at
  %before = load volatile i64, ptr %word
  br label %test
test:
  %i = phi i64 [ 0, %start ], [ %i.next, %body ]
  %done = icmp eq i64 %i, %n
  br i1 %done, label %end, label %body
body:
  %now = load volatile i64, ptr %word
  %i.next = add i64 %i, 1
  br label %test
end:
  %after = add i64 %before, 1
  store volatile i64 %after, ptr %word
  %to.at = getelementptr ptr, ptr %args, i64 2
  %to = load ptr, ptr %to.at
  store i64 %after, ptr %to
  ret i32 0
}

define i32 @gate(ptr %args, ptr %workspace) {
  %x.p = load ptr, ptr %args
  %open.at = getelementptr ptr, ptr %args, i64 1
  %open = load ptr, ptr %open.at
  %begun = getelementptr i64, ptr %open, i64 1
  store volatile i64 1, ptr %begun
  br label %test
test:
  %seen = load volatile i64, ptr %open
  %shut = icmp eq i64 %seen, 0
  br i1 %shut, label %test, label %end
end:
  %x = load volatile i64, ptr %x.p
  store volatile i64 %x, ptr %workspace
  %to.at = getelementptr ptr, ptr %args, i64 2
  %to = load ptr, ptr %to.at
  store i64 %x, ptr %to
  ret i32 0
}

define i32 @where_is_workspace(ptr %args, ptr %workspace) {
  %to = load ptr, ptr %args
  %address = ptrtoint ptr %workspace to i64
  store i64 %address, ptr %to
  ret i32 0
}

define i32 @nothing(ptr %args, ptr %workspace) {
  ret i32 0
}

define i32 @decline(ptr %args, ptr %workspace) {
  %x.p = load ptr, ptr %args
  %x = load i64, ptr %x.p
  %odd = and i64 %x, 1
  %status = trunc i64 %odd to i32
  ret i32 %status
}
"""


@functools.cache
def engine():
    """The machine code of all functions above."""
    text = SLOW + elementwise("add4", 2, "float", "fadd", 4) + elementwise("add1", 2, "float", "fadd", 1)
    text += elementwise("add6", 2, "i64", "add", 6) + elementwise("add50", 50, "double", "fadd", 3)
    return compile_module(text, host_target())


def spec_of(run, inputs, outputs, **options):
    return CallSpec(inputs, outputs, engine().address(run), keepalive=engine(), **options)


def slow(*args, **kwargs):
    return ("slow", args, kwargs)


def is_slow(answer):
    return isinstance(answer, tuple) and answer[0] == "slow"
