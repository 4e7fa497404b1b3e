"""The reader/writer lock over the state of variables: its word, and LLVM IR of the atomic steps on it."""

from enum import IntEnum

TRY_SYMBOL = "graphkb_lock_try"
RELEASE_SYMBOL = "graphkb_lock_release"
MARK_SYMBOL = "graphkb_lock_mark"


class Lock(IntEnum):
    """What a call needs of the state lock. `INSIST` is an exclusive try that overrules waiting writers."""

    NONE = 0
    SHARED = 1
    EXCLUSIVE = 2
    INSIST = 3


# The lock's word: bit 0 an exclusive holder, bit 1 a waiting writer, the bits above count the shared holders.
HELD = 1
WAITING = 2
READER = 4

LOCK_IR = f"""
define i64 @{TRY_SYMBOL}(ptr %word, i64 %kind) {{
start:
  switch i64 %kind, label %taken [
    i64 {Lock.SHARED.value}, label %shared
    i64 {Lock.EXCLUSIVE.value}, label %exclusive
    i64 {Lock.INSIST.value}, label %insist
  ]

shared:
  %seen = load atomic i64, ptr %word monotonic, align 8
  %closed.bits = and i64 %seen, {HELD | WAITING}
  %closed = icmp ne i64 %closed.bits, 0
  br i1 %closed, label %missed, label %join

join:
  %more = add i64 %seen, {READER}
  %joined = cmpxchg ptr %word, i64 %seen, i64 %more acquire monotonic
  %joined.ok = extractvalue {{ i64, i1 }} %joined, 1
  br i1 %joined.ok, label %taken, label %shared

exclusive:
  %owned = cmpxchg ptr %word, i64 0, i64 {HELD} acquire monotonic
  %owned.ok = extractvalue {{ i64, i1 }} %owned, 1
  br i1 %owned.ok, label %taken, label %missed

insist:
  %now = load atomic i64, ptr %word monotonic, align 8
  %others = and i64 %now, {~WAITING}
  %occupied = icmp ne i64 %others, 0
  br i1 %occupied, label %missed, label %seize

seize:
  %seized = cmpxchg ptr %word, i64 %now, i64 {HELD} acquire monotonic
  %seized.ok = extractvalue {{ i64, i1 }} %seized, 1
  br i1 %seized.ok, label %taken, label %insist

taken:
  ret i64 1

missed:
  ret i64 0
}}

define void @{RELEASE_SYMBOL}(ptr %word, i64 %kind) {{
start:
  switch i64 %kind, label %end [
    i64 {Lock.SHARED.value}, label %shared
    i64 {Lock.EXCLUSIVE.value}, label %exclusive
  ]

shared:
  %before.shared = atomicrmw sub ptr %word, i64 {READER} release
  br label %end

exclusive:
  %before.exclusive = atomicrmw and ptr %word, i64 {~HELD} release
  br label %end

end:
  ret void
}}

define void @{MARK_SYMBOL}(ptr %word, i64 %waiting) {{
start:
  %clear = icmp eq i64 %waiting, 0
  br i1 %clear, label %unmark, label %mark

mark:
  %before.mark = atomicrmw or ptr %word, i64 {WAITING} monotonic
  ret void

unmark:
  %before.unmark = atomicrmw and ptr %word, i64 {~WAITING} monotonic
  ret void
}}
"""
"""`i64 try(word, kind)`, `void release(word, kind)` and `void mark(word, waiting)`; none of them waits."""
