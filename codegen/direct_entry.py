"""The vectorcall function of objects that the interpreter calls directly, on its way to the native call entry."""

from graphkb.codegen.entry_words import ENTRY_SYMBOL

DIRECT_SYMBOL = "graphkb_call_directly"

# Fields are written as in the entry, which they are expanded with.
DIRECT_TEMPLATE = f"""
define ptr @{DIRECT_SYMBOL}(ptr %function, ptr %args, i64 %nargsf, ptr %kwnames) uwtable {{
  %slot = field ptr %function + <Direct.SLOT>
  %wanted = field ptr %function + <Direct.CALLABLE>
  %table = field ptr %function + <Direct.TABLE>
  %callable = load ptr, ptr %slot
  %is.ours = icmp eq ptr %callable, %wanted
  br i1 %is.ours, label %ours, label %other

ours:
  ; The call may replace what the slot holds.
  %incref = field ptr %table + <Table.INCREF>
  %decref = field ptr %table + <Table.DECREF>
  call void %incref(ptr %callable)
  %self = field ptr %callable + <object.method_self>
  %nargs = and i64 %nargsf, {2**63 - 1}
  %answer = call ptr @{ENTRY_SYMBOL}(ptr %self, ptr %args, i64 %nargs, ptr %kwnames)
  call void %decref(ptr %callable)
  ret ptr %answer

other:
  ; None while the object is taken apart: its call is the error that it should be.
  %none = field ptr %table + <Table.NONE>
  %is.empty = icmp eq ptr %callable, null
  %called = select i1 %is.empty, ptr %none, ptr %callable
  %vectorcall = field ptr %table + <Table.VECTORCALL>
  %incref.other = field ptr %table + <Table.INCREF>
  %decref.other = field ptr %table + <Table.DECREF>
  call void %incref.other(ptr %called)
  %given = call ptr %vectorcall(ptr %called, ptr %args, i64 %nargsf, ptr %kwnames)
  call void %decref.other(ptr %called)
  ret ptr %given
}}
"""
