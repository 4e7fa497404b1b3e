"""The pool that large outputs take their memory from and return it to, as LLVM IR of an allocator for NumPy.

An array whose handler is this allocator is like any other: it owns its data, and NumPy frees that once nobody can see
it any more. What is freed is kept, so that the next output need not wait for the system to map and clear pages.

    pool    words named by `Pool`, then the addresses of the blocks that are kept, oldest first
    block   pages of its own: the capacity in bytes, padding up to `HEADER` bytes, then the data
"""

from __future__ import annotations

from enum import IntEnum

MALLOC_SYMBOL = "graphkb_pool_malloc"
CALLOC_SYMBOL = "graphkb_pool_calloc"
REALLOC_SYMBOL = "graphkb_pool_realloc"
FREE_SYMBOL = "graphkb_pool_free"
TRIM_SYMBOL = "graphkb_pool_trim"

MOST_BLOCKS = 64
HEADER = 64
_WORD = 8
_PAGE = 4096


class Pool(IntEnum):
    """Word index in the pool. `KEPT` counts the bytes of the blocks that are kept, at most `LIMIT`."""

    LOCK = 0
    KEPT = 1
    LIMIT = 2
    COUNT = 3
    MAP = 4
    UNMAP = 5
    ADVISE = 6
    MAP_FLAGS = 7
    ADVICE = 8
    BLOCKS = 16


POOL_WORDS = Pool.BLOCKS + MOST_BLOCKS


def _at(name: str, word: Pool) -> str:
    return f"%{name}.at = getelementptr inbounds i64, ptr %pool, i64 {word.value}"


POOL_IR = f"""
define internal void @pool_lock(ptr %pool) {{
start:
  br label %try

try:
  %taken = cmpxchg ptr %pool, i64 0, i64 1 acquire monotonic
  %done = extractvalue {{ i64, i1 }} %taken, 1
  br i1 %done, label %end, label %try

end:
  ret void
}}

define internal i64 @pool_capacity(ptr %data) {{
start:
  %at = getelementptr inbounds i8, ptr %data, i64 -{HEADER}
  %capacity = load i64, ptr %at
  ret i64 %capacity
}}

define internal void @pool_unmap(ptr %pool, ptr %data) {{
start:
  {_at("unmap", Pool.UNMAP)}
  %unmap = load ptr, ptr %unmap.at
  %capacity = call i64 @pool_capacity(ptr %data)
  %bytes = add i64 %capacity, {HEADER}
  %base = getelementptr inbounds i8, ptr %data, i64 -{HEADER}
  %status = call i32 %unmap(ptr %base, i64 %bytes)
  ret void
}}

define internal ptr @pool_remove(ptr %pool, i64 %which) {{
start:
  {_at("kept", Pool.KEPT)}
  {_at("count", Pool.COUNT)}
  {_at("blocks", Pool.BLOCKS)}
  %count = load i64, ptr %count.at
  %last = sub i64 %count, 1
  %data.at = getelementptr inbounds ptr, ptr %blocks.at, i64 %which
  %data = load ptr, ptr %data.at
  br label %test

test:
  %i = phi i64 [ %which, %start ], [ %next, %move ]
  %moved = icmp eq i64 %i, %last
  br i1 %moved, label %end, label %move

move:
  %next = add i64 %i, 1
  %from = getelementptr inbounds ptr, ptr %blocks.at, i64 %next
  %to = getelementptr inbounds ptr, ptr %blocks.at, i64 %i
  %block = load ptr, ptr %from
  store ptr %block, ptr %to
  br label %test

end:
  %capacity = call i64 @pool_capacity(ptr %data)
  %kept = load i64, ptr %kept.at
  %left = sub i64 %kept, %capacity
  store i64 %left, ptr %kept.at
  store i64 %last, ptr %count.at
  ret ptr %data
}}

define ptr @{MALLOC_SYMBOL}(ptr %pool, i64 %size) uwtable {{
start:
  %padded = add i64 %size, {HEADER + _PAGE - 1}
  %bytes = and i64 %padded, -{_PAGE}
  %capacity = sub i64 %bytes, {HEADER}
  %slack = lshr i64 %capacity, 3
  %most = add i64 %capacity, %slack
  {_at("count", Pool.COUNT)}
  {_at("blocks", Pool.BLOCKS)}
  call void @pool_lock(ptr %pool)
  %count = load i64, ptr %count.at
  br label %test

test:
  ; The latest that fits: it is the likeliest to be in a cache.
  %i = phi i64 [ %count, %start ], [ %this, %candidate ]
  %none = icmp eq i64 %i, 0
  br i1 %none, label %fresh, label %candidate

candidate:
  %this = sub i64 %i, 1
  %block.at = getelementptr inbounds ptr, ptr %blocks.at, i64 %this
  %block = load ptr, ptr %block.at
  %has = call i64 @pool_capacity(ptr %block)
  %enough = icmp uge i64 %has, %capacity
  %close = icmp ule i64 %has, %most
  %fits = and i1 %enough, %close
  br i1 %fits, label %take, label %test

take:
  %taken = call ptr @pool_remove(ptr %pool, i64 %this)
  store atomic i64 0, ptr %pool release, align 8
  ret ptr %taken

fresh:
  store atomic i64 0, ptr %pool release, align 8
  {_at("mmap", Pool.MAP)}
  {_at("flags", Pool.MAP_FLAGS)}
  {_at("madvise", Pool.ADVISE)}
  {_at("advice", Pool.ADVICE)}
  %mmap = load ptr, ptr %mmap.at
  %flags = load i32, ptr %flags.at
  %overflow = icmp ult i64 %bytes, %size
  br i1 %overflow, label %fail, label %call

call:
  %base = call ptr %mmap(ptr null, i64 %bytes, i32 3, i32 %flags, i32 -1, i64 0)
  %base.number = ptrtoint ptr %base to i64
  %failed = icmp eq i64 %base.number, -1
  br i1 %failed, label %fail, label %advise

advise:
  %advice = load i32, ptr %advice.at
  %silent = icmp eq i32 %advice, 0
  br i1 %silent, label %fill, label %large

large:
  %madvise = load ptr, ptr %madvise.at
  %status = call i32 %madvise(ptr %base, i64 %bytes, i32 %advice)
  br label %fill

fill:
  store i64 %capacity, ptr %base
  %data = getelementptr inbounds i8, ptr %base, i64 {HEADER}
  ret ptr %data

fail:
  ret ptr null
}}

define void @{FREE_SYMBOL}(ptr %pool, ptr %data, i64 %size) uwtable {{
start:
  %nothing = icmp eq ptr %data, null
  br i1 %nothing, label %end, label %begin

begin:
  {_at("kept", Pool.KEPT)}
  {_at("limit", Pool.LIMIT)}
  {_at("count", Pool.COUNT)}
  {_at("blocks", Pool.BLOCKS)}
  %capacity = call i64 @pool_capacity(ptr %data)
  %limit = load i64, ptr %limit.at
  %huge = icmp ugt i64 %capacity, %limit
  br i1 %huge, label %unmap, label %keep

unmap:
  call void @pool_unmap(ptr %pool, ptr %data)
  ret void

keep:
  call void @pool_lock(ptr %pool)
  br label %test

test:
  %count = load i64, ptr %count.at
  %kept = load i64, ptr %kept.at
  %then = add i64 %kept, %capacity
  %much = icmp ugt i64 %then, %limit
  %many = icmp eq i64 %count, {MOST_BLOCKS}
  %full = or i1 %much, %many
  br i1 %full, label %evict, label %put

evict:
  %oldest = call ptr @pool_remove(ptr %pool, i64 0)
  call void @pool_unmap(ptr %pool, ptr %oldest)
  br label %test

put:
  %slot = getelementptr inbounds ptr, ptr %blocks.at, i64 %count
  store ptr %data, ptr %slot
  %more = add i64 %count, 1
  store i64 %more, ptr %count.at
  store i64 %then, ptr %kept.at
  store atomic i64 0, ptr %pool release, align 8
  ret void

end:
  ret void
}}

define void @{TRIM_SYMBOL}(ptr %pool) uwtable {{
start:
  {_at("count", Pool.COUNT)}
  call void @pool_lock(ptr %pool)
  br label %test

test:
  %count = load i64, ptr %count.at
  %empty = icmp eq i64 %count, 0
  br i1 %empty, label %end, label %evict

evict:
  %oldest = call ptr @pool_remove(ptr %pool, i64 0)
  call void @pool_unmap(ptr %pool, ptr %oldest)
  br label %test

end:
  store atomic i64 0, ptr %pool release, align 8
  ret void
}}

define internal void @pool_copy(ptr %from, ptr %to, i64 %bytes) {{
start:
  %padded = add i64 %bytes, {_WORD - 1}
  %words = lshr i64 %padded, 3
  br label %test

test:
  %i = phi i64 [ 0, %start ], [ %next, %body ]
  %done = icmp eq i64 %i, %words
  br i1 %done, label %end, label %body

body:
  %source = getelementptr inbounds i64, ptr %from, i64 %i
  %target = getelementptr inbounds i64, ptr %to, i64 %i
  %word = load i64, ptr %source
  store i64 %word, ptr %target
  %next = add i64 %i, 1
  br label %test

end:
  ret void
}}

define ptr @{CALLOC_SYMBOL}(ptr %pool, i64 %count, i64 %each) uwtable {{
start:
  %product = call {{ i64, i1 }} @llvm.umul.with.overflow.i64(i64 %count, i64 %each)
  %overflow = extractvalue {{ i64, i1 }} %product, 1
  br i1 %overflow, label %fail, label %make

make:
  %size = extractvalue {{ i64, i1 }} %product, 0
  %data = call ptr @{MALLOC_SYMBOL}(ptr %pool, i64 %size)
  %failed = icmp eq ptr %data, null
  br i1 %failed, label %fail, label %clear

clear:
  %padded = add i64 %size, {_WORD - 1}
  %words = lshr i64 %padded, 3
  br label %test

test:
  %i = phi i64 [ 0, %clear ], [ %next, %body ]
  %done = icmp eq i64 %i, %words
  br i1 %done, label %end, label %body

body:
  %target = getelementptr inbounds i64, ptr %data, i64 %i
  store i64 0, ptr %target
  %next = add i64 %i, 1
  br label %test

end:
  ret ptr %data

fail:
  ret ptr null
}}

define ptr @{REALLOC_SYMBOL}(ptr %pool, ptr %data, i64 %size) uwtable {{
start:
  %nothing = icmp eq ptr %data, null
  br i1 %nothing, label %new, label %old

new:
  %first = call ptr @{MALLOC_SYMBOL}(ptr %pool, i64 %size)
  ret ptr %first

old:
  %made = call ptr @{MALLOC_SYMBOL}(ptr %pool, i64 %size)
  %failed = icmp eq ptr %made, null
  br i1 %failed, label %end, label %copy

copy:
  %has = call i64 @pool_capacity(ptr %data)
  %shorter = icmp ult i64 %has, %size
  %bytes = select i1 %shorter, i64 %has, i64 %size
  call void @pool_copy(ptr %data, ptr %made, i64 %bytes)
  call void @{FREE_SYMBOL}(ptr %pool, ptr %data, i64 %bytes)
  br label %end

end:
  ret ptr %made
}}

declare {{ i64, i1 }} @llvm.umul.with.overflow.i64(i64, i64)
"""
"""`malloc`, `calloc`, `realloc` and `free` as NumPy calls them, the pool being their context; `void trim(pool)`."""
