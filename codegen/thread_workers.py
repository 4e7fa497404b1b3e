"""The workers of the thread pool: LLVM IR of how they watch for jobs, sleep, are woken and started."""

# Filled in by `thread_pool.emit_pool` together with the state and the declarations, which stand there.
WORKERS = """\
define internal ptr @graphkb.pool.worker(ptr %number) nounwind {{
start:
  %self = ptrtoint ptr %number to i64
  %places = alloca [128 x i8], align 8
  %mutex = getelementptr %graphkb.bed, ptr @graphkb.pool.beds, i64 %self, i32 0
  %condition = getelementptr %graphkb.bed, ptr @graphkb.pool.beds, i64 %self, i32 1
  %asleep = getelementptr %graphkb.bed, ptr @graphkb.pool.beds, i64 %self, i32 2
  br label %watch

watch:
  %seen = phi i64 [ -1, %start ], [ %seen, %again ], [ %job, %notice ], [ %job, %join ], [ %seen, %rise ]
  %idle = phi i64 [ 1, %start ], [ %idle.next, %again ], [ %idle, %notice ], [ 1, %join ], [ 1, %rise ]
  %since = phi i64 [ 0, %start ], [ %since.next, %again ], [ %since, %notice ], [ 0, %join ], [ 0, %rise ]
  %last = phi i64 [ 0, %start ], [ %last.next, %again ], [ %last, %notice ], [ 0, %join ], [ 0, %rise ]
  %rough = phi i64 [ 0, %start ], [ %rough.next, %again ], [ %rough, %notice ], [ %rough, %join ], [ %rough.now, %rise ]
  %job = load atomic i64, ptr @graphkb.pool.jobs acquire, align 8
  %old = icmp eq i64 %job, %seen
  br i1 %old, label %linger, label %notice

notice:
  %crew = load atomic i64, ptr @graphkb.pool.crew monotonic, align 8
  %wanted = icmp ult i64 %self, %crew
  br i1 %wanted, label %join, label %watch

join:
  call void @graphkb.pool.step_aside()
  call void @graphkb.pool.work(i64 %self, i64 %crew)
  br label %watch

linger:
{pause}
  %rest = and i64 %idle, {looks}
  %tired = icmp eq i64 %rest, 0
  br i1 %tired, label %check, label %again

check:
  %now = call i64 @graphkb.pool.clock()
  %fresh = icmp eq i64 %since, 0
  %begun = select i1 %fresh, i64 %now, i64 %since
  %before = select i1 %fresh, i64 %now, i64 %last
  %gap = sub i64 %now, %before
  %disturbed = icmp ugt i64 %gap, {lost}
  %later = add i64 %now, {rough}
  %rough.now = select i1 %disturbed, i64 %later, i64 %rough
  %contended = icmp ult i64 %now, %rough.now
  %patience = select i1 %contended, i64 {glancing}, i64 {watching}
  %spent = sub i64 %now, %begun
  %bored = icmp ugt i64 %spent, %patience
  br i1 %bored, label %lie_down, label %again

again:
  %since.next = phi i64 [ %since, %linger ], [ %begun, %check ]
  %last.next = phi i64 [ %last, %linger ], [ %now, %check ]
  %rough.next = phi i64 [ %rough, %linger ], [ %rough.now, %check ]
  %idle.next = add i64 %idle, 1
  br label %watch

lie_down:
  ; First tell that one sleeps, then look once more: who announces a job does these two the other way round.
  %narrowed = call i32 @graphkb.pool.narrow(ptr %places)
  %locked = call i32 @pthread_mutex_lock(ptr %mutex)
  store atomic i64 1, ptr %asleep seq_cst, align 8
  %others = atomicrmw add ptr @graphkb.pool.sleepers, i64 1 seq_cst
  br label %sleep

sleep:
  %job.now = load atomic i64, ptr @graphkb.pool.jobs seq_cst, align 8
  %nothing = icmp eq i64 %job.now, %seen
  br i1 %nothing, label %dream, label %rise

dream:
  %woken = call i32 @pthread_cond_wait(ptr %condition, ptr %mutex)
  br label %sleep

rise:
  %fewer = atomicrmw sub ptr @graphkb.pool.sleepers, i64 1 seq_cst
  store atomic i64 0, ptr %asleep monotonic, align 8
  %unlocked = call i32 @pthread_mutex_unlock(ptr %mutex)
  call void @graphkb.pool.widen(ptr %places, i32 %narrowed)
  br label %watch
}}

define internal i64 @graphkb.pool.clock() nounwind {{
start:
  %time = alloca [2 x i64], align 8
  %status = call i32 @clock_gettime(i32 {clock}, ptr %time)
  %seconds = load i64, ptr %time
  %second = getelementptr i64, ptr %time, i64 1
  %rest = load i64, ptr %second
  %scaled = mul i64 %seconds, 1000000000
  %now = add i64 %scaled, %rest
  ret i64 %now
}}

; Wake those of a crew that sleep.
define internal void @graphkb.pool.wake(i64 %crew) nounwind {{
start:
  br label %test

test:
  %member = phi i64 [ 1, %start ], [ %member.next, %next ]
  %all = icmp uge i64 %member, %crew
  br i1 %all, label %end, label %look

look:
  %asleep.at = getelementptr %graphkb.bed, ptr @graphkb.pool.beds, i64 %member, i32 2
  %asleep = load atomic i64, ptr %asleep.at seq_cst, align 8
  %awake = icmp eq i64 %asleep, 0
  br i1 %awake, label %next, label %call

call:
  ; With the mutex in between, the worker either has seen the job or waits already.
  %mutex = getelementptr %graphkb.bed, ptr @graphkb.pool.beds, i64 %member, i32 0
  %condition = getelementptr %graphkb.bed, ptr @graphkb.pool.beds, i64 %member, i32 1
  %locked = call i32 @pthread_mutex_lock(ptr %mutex)
  %unlocked = call i32 @pthread_mutex_unlock(ptr %mutex)
  %signaled = call i32 @pthread_cond_signal(ptr %condition)
  br label %next

next:
  %member.next = add i64 %member, 1
  br label %test

end:
  ret void
}}

; Start workers until a crew of `wish` is there or the system refuses; returns how many workers there are.
define internal i64 @graphkb.pool.grow(i64 %wish) nounwind {{
start:
  %all = alloca [128 x i8], align 16
  %before = alloca [128 x i8], align 16
  %thread = alloca i64, align 8
  %watched.before = load i64, ptr @graphkb.pool.watched
  %unwatched = icmp eq i64 %watched.before, 0
  br i1 %unwatched, label %watch, label %block

watch:
{watch_forks}
  store i64 1, ptr @graphkb.pool.watched
  br label %block

block:
  %filled = call i32 @sigfillset(ptr %all)
{faults}
  %blocked = call i32 @pthread_sigmask(i32 {set_mask}, ptr %all, ptr %before)
  br label %test

test:
  %workers = load i64, ptr @graphkb.pool.workers
  %number = add i64 %workers, 1
  %enough = icmp uge i64 %number, %wish
  br i1 %enough, label %end, label %hire

hire:
  %mutex = getelementptr %graphkb.bed, ptr @graphkb.pool.beds, i64 %number, i32 0
  %condition = getelementptr %graphkb.bed, ptr @graphkb.pool.beds, i64 %number, i32 1
  %mutex.made = call i32 @pthread_mutex_init(ptr %mutex, ptr null)
  %condition.made = call i32 @pthread_cond_init(ptr %condition, ptr null)
  %argument = inttoptr i64 %number to ptr
  %status = call i32 @pthread_create(ptr %thread, ptr null, ptr @graphkb.pool.worker, ptr %argument)
  %made = icmp eq i32 %status, 0
  br i1 %made, label %keep, label %refused

keep:
  %id = load i64, ptr %thread
  %detached = call i32 @pthread_detach(i64 %id)
  store i64 %number, ptr @graphkb.pool.workers
  br label %test

refused:
  store i64 %number, ptr @graphkb.pool.most
  br label %end

end:
  %unblocked = call i32 @pthread_sigmask(i32 {set_mask}, ptr %before, ptr null)
  %hired = load i64, ptr @graphkb.pool.workers
  ret i64 %hired
}}

; In a forked child no worker runs: begin anew.
define {linkage}void @graphkb_pool_reset() nounwind {{
start:
  store i64 0, ptr @graphkb.pool.sleepers
  store i64 0, ptr @graphkb.pool.pending
  store i64 0, ptr @graphkb.pool.workers
  store i64 {most}, ptr @graphkb.pool.most
  store i64 0, ptr @graphkb.pool.credit
  br label %clear

clear:
  %member = phi i64 [ 0, %start ], [ %member.next, %clear ]
  %part = getelementptr [16 x i64], ptr @graphkb.pool.parts, i64 %member
  store i64 0, ptr %part
  %asleep = getelementptr %graphkb.bed, ptr @graphkb.pool.beds, i64 %member, i32 2
  store i64 0, ptr %asleep
  %member.next = add i64 %member, 1
  %more = icmp ult i64 %member.next, {most}
  br i1 %more, label %clear, label %free

free:
  store atomic i64 0, ptr @graphkb.pool.busy release, align 8
  ret void
}}

; How many workers have been started.
define {linkage}i64 @graphkb_pool_workers() nounwind {{
start:
  %workers = load i64, ptr @graphkb.pool.workers
  ret i64 %workers
}}

"""
