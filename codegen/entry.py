"""The native call entry: LLVM IR of the C function that Python calls.

One entry serves every compiled function of a process. It is driven by data alone, so its object code holds no
address and can be kept on disk:

    self    tuple (memory, slow, owner); memory is an array of words: [table, first context]
    table   words named by `Table`: C-API functions, type objects, the state lock, the fork generation
    context words named by `Context`, newest first; its input and output records are named by `Record`

`f([x, y])` walks the contexts until one agrees with the count, and with every array's dtype, flags and dims; where
dims are open, the context's own function judges them and finds the outputs' dims. Then it makes the outputs, large
ones with memory from the pool, takes the lock and calls `run(args, workspace)`. In every other case, also where `run`
returns anything but 0, `slow` gets the very same arguments. Functions that the interpreter calls directly lead there by
way of the words named by `Direct`. Whoever holds the interpreter's lock owns the busy words,
therefore they need no atomics; the state lock is given back before that lock is taken again, therefore it does.
"""

import re

from graphkb.codegen.direct_entry import DIRECT_TEMPLATE
from graphkb.codegen.entry_words import (
    ANY_SIZE,
    C_ARRAY,
    C_CONTIGUOUS_AND_ALIGNED,
    ENTRY_SYMBOL,
    NATIVE_ORDER,
    NO_ORDER,
    OWNS_DATA,
    RECORD_WORDS,
    WORD,
    Context,
    Direct,
    Layout,
    Record,
    Table,
)
from graphkb.codegen.lock import LOCK_IR, RELEASE_SYMBOL, TRY_SYMBOL, Lock

NOTHING_SYMBOL = "graphkb_run_nothing"


def emit_entry(layout: Layout) -> str:
    """The LLVM IR module of the entry and of the lock's helpers for objects of this `layout`."""
    offsets = {f"object.{name}": value for name, value in vars(layout).items()}
    offsets["object.tuple_second"] = layout.tuple_items + WORD
    for words in (Table, Context, Record):
        offsets |= {f"{words.__name__}.{word.name}": word * WORD for word in words}
    offsets |= {f"Direct.{word.name}": layout.words + word * WORD for word in Direct}

    def number(match: re.Match[str]) -> str:
        return str(offsets[match[1]])

    text = re.sub(r"<([A-Za-z]+\.\w+)>", number, _TEMPLATE + DIRECT_TEMPLATE)
    return re.sub(_FIELD, _expand_field, text) + LOCK_IR


# `%x = field T %base + n` stands for the address computation and the load.
_FIELD = r"(?m)^  (%[\w.]+) = field (\w+) (%[\w.]+) \+ (\d+)$"


def _expand_field(match: re.Match[str]) -> str:
    result, type_, base, offset = match.groups()
    address = f"  {result}.at = getelementptr inbounds i8, ptr {base}, i64 {offset}"
    return f"{address}\n  {result} = load {type_}, ptr {result}.at"


_TEMPLATE = f"""
define ptr @{ENTRY_SYMBOL}(ptr %self, ptr %args, i64 %nargs, ptr %kwnames) uwtable {{
start:
  %memory = field ptr %self + <object.tuple_items>
  %slow = field ptr %self + <object.tuple_second>
  %state = field ptr %memory + <object.array_data>
  %table = field ptr %state + 0
  %head = field ptr %state + {WORD}
  %single = icmp eq i64 %nargs, 1
  %positional = icmp eq ptr %kwnames, null
  %plain = and i1 %single, %positional
  br i1 %plain, label %sequence, label %slow_path

sequence:
  %sequence.object = load ptr, ptr %args
  %sequence.type = field ptr %sequence.object + <object.ob_type>
  %list.type = field ptr %table + <Table.LIST_TYPE>
  %is.list = icmp eq ptr %sequence.type, %list.type
  br i1 %is.list, label %list, label %not_list

list:
  %list.items = field ptr %sequence.object + <object.list_items>
  br label %search

not_list:
  %tuple.type = field ptr %table + <Table.TUPLE_TYPE>
  %is.tuple = icmp eq ptr %sequence.type, %tuple.type
  %tuple.items = getelementptr inbounds i8, ptr %sequence.object, i64 <object.tuple_items>
  br i1 %is.tuple, label %search, label %slow_path

search:
  %items = phi ptr [ %list.items, %list ], [ %tuple.items, %not_list ]
  %count = field i64 %sequence.object + <object.ob_size>
  %array.type = field ptr %table + <Table.ARRAY_TYPE>
  br label %candidate

candidate:
  %context = phi ptr [ %head, %search ], [ %next, %reject ]
  %exhausted = icmp eq ptr %context, null
  br i1 %exhausted, label %slow_path, label %compare_count

reject:
  %next = field ptr %context + <Context.NEXT>
  br label %candidate

compare_count:
  %n_inputs = field i64 %context + <Context.N_INPUTS>
  %same.count = icmp eq i64 %n_inputs, %count
  %inputs = field ptr %context + <Context.INPUTS>
  br i1 %same.count, label %input, label %reject

input:
  %i = phi i64 [ 0, %compare_count ], [ %i.next, %next_input ]
  %inputs.agree = icmp eq i64 %i, %n_inputs
  br i1 %inputs.agree, label %acquire, label %compare_present

compare_present:
  %item.at = getelementptr inbounds ptr, ptr %items, i64 %i
  %item = load ptr, ptr %item.at
  %absent = icmp eq ptr %item, null
  br i1 %absent, label %reject, label %compare_type

compare_type:
  %item.type = field ptr %item + <object.ob_type>
  %is.array = icmp eq ptr %item.type, %array.type
  br i1 %is.array, label %compare_descr, label %reject

compare_descr:
  %record.offset = mul i64 %i, {RECORD_WORDS * WORD}
  %record = getelementptr inbounds i8, ptr %inputs, i64 %record.offset
  %want.descr = field ptr %record + <Record.DESCR>
  %item.descr = field ptr %item + <object.array_descr>
  %same.descr = icmp eq ptr %item.descr, %want.descr
  br i1 %same.descr, label %compare_layout, label %compare_type_num

compare_type_num:
  %item.num = field i32 %item.descr + <object.descr_type_num>
  %want.num = field i32 %record + <Record.TYPE_NUM>
  %want.alias = field i32 %record + <Record.TYPE_NUM_ALIAS>
  %item.order = field i8 %item.descr + <object.descr_order>
  %same.num = icmp eq i32 %item.num, %want.num
  %same.alias = icmp eq i32 %item.num, %want.alias
  %same.either = or i1 %same.num, %same.alias
  %order.native = icmp eq i8 %item.order, {NATIVE_ORDER}
  %order.none = icmp eq i8 %item.order, {NO_ORDER}
  %order.fits = or i1 %order.native, %order.none
  %same.dtype = and i1 %same.either, %order.fits
  br i1 %same.dtype, label %compare_layout, label %reject

compare_layout:
  %flags = field i32 %item + <object.array_flags>
  %flags.needed = and i32 %flags, {C_CONTIGUOUS_AND_ALIGNED}
  %flags.fit = icmp eq i32 %flags.needed, {C_CONTIGUOUS_AND_ALIGNED}
  %ndim = field i32 %item + <object.array_ndim>
  %want.ndim = field i32 %record + <Record.NDIM>
  %same.ndim = icmp eq i32 %ndim, %want.ndim
  %layout.fits = and i1 %flags.fit, %same.ndim
  %dims = field ptr %item + <object.array_dims>
  %want.dims = field ptr %record + <Record.DIMS>
  br i1 %layout.fits, label %dim, label %reject

dim:
  %axis = phi i32 [ 0, %compare_layout ], [ %axis.next, %next_dim ]
  %dims.agree = icmp eq i32 %axis, %ndim
  br i1 %dims.agree, label %next_input, label %compare_dim

compare_dim:
  %dim.at = getelementptr inbounds i64, ptr %dims, i32 %axis
  %dim.size = load i64, ptr %dim.at
  %want.dim.at = getelementptr inbounds i64, ptr %want.dims, i32 %axis
  %want.dim = load i64, ptr %want.dim.at
  %same.dim = icmp eq i64 %dim.size, %want.dim
  br i1 %same.dim, label %next_dim, label %other_dim

other_dim:
  %any.dim = icmp eq i64 %want.dim, {ANY_SIZE}
  br i1 %any.dim, label %next_dim, label %reject

next_dim:
  %axis.next = add i32 %axis, 1
  br label %dim

next_input:
  %i.next = add i64 %i, 1
  br label %input

acquire:
  %generation = field i64 %table + <Table.GENERATION>
  %owner = field i64 %context + <Context.BUSY>
  %is.busy = icmp eq i64 %owner, %generation
  br i1 %is.busy, label %reject, label %take

take:
  store i64 %generation, ptr %owner.at
  %run.args = field ptr %context + <Context.ARGS>
  %sizes = field ptr %context + <Context.SIZES>
  %sizes.known = icmp eq ptr %sizes, null
  br i1 %sizes.known, label %point_all, label %gather

gather:
  %shapes = field ptr %context + <Context.SHAPES>
  br label %shape

shape:
  %s = phi i64 [ 0, %gather ], [ %s.next, %gather_shape ]
  %all.gathered = icmp eq i64 %s, %n_inputs
  br i1 %all.gathered, label %measure, label %gather_shape

gather_shape:
  %shape.from = getelementptr inbounds ptr, ptr %items, i64 %s
  %shape.array = load ptr, ptr %shape.from
  %shape.dims = field ptr %shape.array + <object.array_dims>
  %shape.to = getelementptr inbounds ptr, ptr %shapes, i64 %s
  store ptr %shape.dims, ptr %shape.to
  %s.next = add i64 %s, 1
  br label %shape

measure:
  %size.args = field ptr %context + <Context.SIZE_ARGS>
  %output.dims = field ptr %context + <Context.OUTPUT_DIMS>
  %room = field i64 %context + <Context.WORKSPACE_BYTES>
  %needed = call i64 %sizes(ptr %shapes, ptr %size.args, ptr %output.dims)
  ; Unsigned, so that -1, for sizes that the code does not serve, needs more than there ever is.
  %fits = icmp ule i64 %needed, %room
  br i1 %fits, label %sized, label %unfit

sized:
  ; Behind the dims of the outputs there are their bytes.
  %sized.count = field i64 %context + <Context.N_OUTPUTS>
  %sized.records = field ptr %context + <Context.OUTPUTS>
  %sized.bytes = field ptr %context + <Context.OUTPUT_BYTES>
  %large.from = field i64 %context + <Context.RECYCLE_FROM>
  br label %size_output

size_output:
  %o = phi i64 [ 0, %sized ], [ %o.next, %set_recycled ]
  %all.sized = icmp eq i64 %o, %sized.count
  br i1 %all.sized, label %point_all, label %set_recycled

set_recycled:
  %bytes.at = getelementptr inbounds i64, ptr %sized.bytes, i64 %o
  %bytes = load i64, ptr %bytes.at
  %bytes.large = icmp uge i64 %bytes, %large.from
  %recycled = select i1 %bytes.large, i64 %bytes, i64 0
  %recycled.index = mul i64 %o, {RECORD_WORDS * WORD}
  %recycled.record = getelementptr inbounds i8, ptr %sized.records, i64 %recycled.index
  %recycled.at = getelementptr inbounds i8, ptr %recycled.record, i64 <Record.RECYCLED>
  store i64 %recycled, ptr %recycled.at
  %o.next = add i64 %o, 1
  br label %size_output

unfit:
  store i64 0, ptr %owner.at
  br label %reject

point_all:
  br label %point

point:
  %p = phi i64 [ 0, %point_all ], [ %p.next, %point_input ]
  %all.pointed = icmp eq i64 %p, %n_inputs
  br i1 %all.pointed, label %make_outputs, label %point_input

point_input:
  %point.from = getelementptr inbounds ptr, ptr %items, i64 %p
  %point.array = load ptr, ptr %point.from
  %point.data = field ptr %point.array + <object.array_data>
  %point.to = getelementptr inbounds ptr, ptr %run.args, i64 %p
  store ptr %point.data, ptr %point.to
  %p.next = add i64 %p, 1
  br label %point

make_outputs:
  %incref = field ptr %table + <Table.INCREF>
  %decref = field ptr %table + <Table.DECREF>
  %array_new = field ptr %table + <Table.ARRAY_NEW>
  %n_outputs = field i64 %context + <Context.N_OUTPUTS>
  %outputs = field ptr %context + <Context.OUTPUTS>
  %output_args = field ptr %context + <Context.OUTPUT_ARGS>
  %made = alloca ptr, i64 %n_outputs, align 8
  br label %output

output:
  %j = phi i64 [ 0, %make_outputs ], [ %j.next, %keep_output ]
  %outputs.made = icmp eq i64 %j, %n_outputs
  br i1 %outputs.made, label %enter, label %make_output

make_output:
  %new.offset = mul i64 %j, {RECORD_WORDS * WORD}
  %new.record = getelementptr inbounds i8, ptr %outputs, i64 %new.offset
  %new.descr = field ptr %new.record + <Record.DESCR>
  %new.ndim = field i32 %new.record + <Record.NDIM>
  %new.dims = field ptr %new.record + <Record.DIMS>
  %new.bytes = field i64 %new.record + <Record.RECYCLED>
  call void %incref(ptr %new.descr)
  %is.large = icmp ne i64 %new.bytes, 0
  br i1 %is.large, label %recycle, label %make_array

make_array:
  %fresh = call ptr %array_new(
    ptr %array.type, ptr %new.descr, i32 %new.ndim, ptr %new.dims, ptr null, ptr null, i32 0, ptr null)
  %no.array = icmp eq ptr %fresh, null
  br i1 %no.array, label %fail, label %keep_output

recycle:
  %pool = field ptr %table + <Table.POOL>
  %malloc = field ptr %table + <Table.POOL_MALLOC>
  %block = call ptr %malloc(ptr %pool, i64 %new.bytes)
  %no.block = icmp eq ptr %block, null
  br i1 %no.block, label %make_array, label %wrap_block

wrap_block:
  %wrapped = call ptr %array_new(
    ptr %array.type, ptr %new.descr, i32 %new.ndim, ptr %new.dims, ptr null, ptr %block, i32 {C_ARRAY}, ptr null)
  %no.wrapper = icmp eq ptr %wrapped, null
  br i1 %no.wrapper, label %return_block, label %own_block

return_block:
  %free = field ptr %table + <Table.POOL_FREE>
  call void %free(ptr %pool, ptr %block, i64 %new.bytes)
  br label %fail

own_block:
  ; The state of an array that NumPy made with this handler: it gives the block back when nobody can see it any more.
  %wrapped.flags = field i32 %wrapped + <object.array_flags>
  %owned.flags = or i32 %wrapped.flags, {OWNS_DATA}
  store i32 %owned.flags, ptr %wrapped.flags.at
  %handler = field ptr %table + <Table.HANDLER>
  call void %incref(ptr %handler)
  %handler.to = getelementptr inbounds i8, ptr %wrapped, i64 <object.array_handler>
  store ptr %handler, ptr %handler.to
  br label %keep_output

keep_output:
  %new = phi ptr [ %fresh, %make_array ], [ %wrapped, %own_block ]
  %new.data = field ptr %new + <object.array_data>
  %new.arg = getelementptr inbounds ptr, ptr %output_args, i64 %j
  store ptr %new.data, ptr %new.arg
  %new.slot = getelementptr inbounds ptr, ptr %made, i64 %j
  store ptr %new, ptr %new.slot
  %j.next = add i64 %j, 1
  br label %output

enter:
  %kind = field i64 %context + <Context.LOCK>
  %run = field ptr %context + <Context.RUN>
  %workspace = field ptr %context + <Context.WORKSPACE>
  %release = field i64 %context + <Context.RELEASE_GIL>
  %lock = getelementptr inbounds i8, ptr %table, i64 <Table.LOCK>
  %lock.free = icmp eq i64 %kind, {Lock.NONE.value}
  br i1 %lock.free, label %locked, label %lock_state

lock_state:
  %taken = call i64 @{TRY_SYMBOL}(ptr %lock, i64 %kind)
  %contended = icmp eq i64 %taken, 0
  br i1 %contended, label %give_up, label %locked

locked:
  %keep.gil = icmp eq i64 %release, 0
  br i1 %keep.gil, label %run_held, label %hold

run_held:
  %held.status = call i32 %run(ptr %run.args, ptr %workspace)
  call void @{RELEASE_SYMBOL}(ptr %lock, i64 %kind)
  %held.done = icmp eq i32 %held.status, 0
  store i64 0, ptr %owner.at
  br i1 %held.done, label %make_list, label %declined

hold:
  ; Without the interpreter's lock others may empty the sequence, so the inputs need references of their own.
  %held = alloca ptr, i64 %n_inputs, align 8
  br label %hold_test

hold_test:
  %h = phi i64 [ 0, %hold ], [ %h.next, %hold_input ]
  %all.held = icmp eq i64 %h, %n_inputs
  br i1 %all.held, label %run_released, label %hold_input

hold_input:
  %hold.from = getelementptr inbounds ptr, ptr %items, i64 %h
  %hold.array = load ptr, ptr %hold.from
  %hold.to = getelementptr inbounds ptr, ptr %held, i64 %h
  store ptr %hold.array, ptr %hold.to
  call void %incref(ptr %hold.array)
  %h.next = add i64 %h, 1
  br label %hold_test

run_released:
  %save = field ptr %table + <Table.SAVE_THREAD>
  %restore = field ptr %table + <Table.RESTORE_THREAD>
  %thread = call ptr %save()
  %released.status = call i32 %run(ptr %run.args, ptr %workspace)
  call void @{RELEASE_SYMBOL}(ptr %lock, i64 %kind)
  call void %restore(ptr %thread)
  store i64 0, ptr %owner.at
  call void @drop(ptr %held, i64 %n_inputs, ptr %decref)
  %released.done = icmp eq i32 %released.status, 0
  br i1 %released.done, label %make_list, label %declined

make_list:
  ; Last, because it may collect garbage: until here nothing could run Python code or change the sequence.
  %list_new = field ptr %table + <Table.LIST_NEW>
  %result = call ptr %list_new(i64 %n_outputs)
  %no.list = icmp eq ptr %result, null
  br i1 %no.list, label %fail_list, label %fill_list

fill_list:
  %calls = field i64 %context + <Context.CALLS>
  %calls.more = add i64 %calls, 1
  store i64 %calls.more, ptr %calls.at
  %result.items = field ptr %result + <object.list_items>
  br label %fill

fill:
  %k = phi i64 [ 0, %fill_list ], [ %k.next, %fill_item ]
  %filled = icmp eq i64 %k, %n_outputs
  br i1 %filled, label %return, label %fill_item

fill_item:
  %fill.from = getelementptr inbounds ptr, ptr %made, i64 %k
  %fill.array = load ptr, ptr %fill.from
  %fill.to = getelementptr inbounds ptr, ptr %result.items, i64 %k
  store ptr %fill.array, ptr %fill.to
  %k.next = add i64 %k, 1
  br label %fill

return:
  ret ptr %result

fail:
  store i64 0, ptr %owner.at
  call void @drop(ptr %made, i64 %j, ptr %decref)
  ret ptr null

fail_list:
  call void @drop(ptr %made, i64 %n_outputs, ptr %decref)
  ret ptr null

give_up:
  store i64 0, ptr %owner.at
  br label %declined

declined:
  call void @drop(ptr %made, i64 %n_outputs, ptr %decref)
  br label %slow_path

slow_path:
  %vectorcall = field ptr %table + <Table.VECTORCALL>
  %answer = call ptr %vectorcall(ptr %slow, ptr %args, i64 %nargs, ptr %kwnames)
  ret ptr %answer
}}

define internal void @drop(ptr %objects, i64 %n, ptr %decref) uwtable {{
start:
  br label %test

test:
  %i = phi i64 [ 0, %start ], [ %i.next, %body ]
  %done = icmp eq i64 %i, %n
  br i1 %done, label %end, label %body

body:
  %at = getelementptr inbounds ptr, ptr %objects, i64 %i
  %object = load ptr, ptr %at
  call void %decref(ptr %object)
  %i.next = add i64 %i, 1
  br label %test

end:
  ret void
}}

define i32 @{NOTHING_SYMBOL}(ptr %args, ptr %workspace) {{
  ret i32 0
}}
"""
