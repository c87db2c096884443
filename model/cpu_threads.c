/*
 * The thread pool of the CPU back end.  A phase is opened by storing its number, odd, and closed by the next even one;
 * a thread enters an open phase, runs the tasks of its own range, then what is left of the others', and leaves.  A
 * thread that is late, because something else had its CPU, finds the phase closed and nobody has waited for it.
 */
#include "model/cpu_threads.h"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "model/cpu_count.h"

#if defined(__SSE__)
#include <xmmintrin.h>
#define pause_cpu() _mm_pause()
#define DENORMALS_ARE_ZERO 0x8040u /* flush to zero, denormals are zero */
#else
#define pause_cpu() atomic_signal_fence(memory_order_seq_cst)
#endif

#define SPINS_BEFORE_SLEEP 4000 /* pauses: about 100 microseconds */

/* The tasks that are one thread's own. */
struct range {
	alignas(64) atomic_size_t next;
	size_t end;
};

struct cpu_threads {
	alignas(64) atomic_uint phase; /* odd: open */
	atomic_uint sleepers;
	alignas(64) atomic_uint inside; /* threads that may be running tasks, without the caller, */
	atomic_bool awaited;            /* who sleeps until they are out */
	alignas(64) cpu_task *task;     /* of the open phase, as are arg and ranges */
	void *arg;
	struct range *ranges; /* [count] */
	size_t count;
	atomic_bool stop;
	struct helper {
		struct cpu_threads *threads;
		size_t number;
		pthread_t thread;
	} *helpers; /* [count - 1] */
	size_t started;
};

static unsigned denormals_flush(void)
{
#if defined(__SSE__)
	unsigned before = _mm_getcsr();

	_mm_setcsr(before | DENORMALS_ARE_ZERO);
	return before;
#else
	return 0;
#endif
}

static void denormals_restore(unsigned before)
{
#if defined(__SSE__)
	_mm_setcsr(before);
#else
	(void)before;
#endif
}

static void futex(atomic_uint *word, int operation, unsigned value)
{
	syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

static void take_tasks(struct cpu_threads *threads, size_t number)
{
	for (size_t i = 0; i < threads->count; i++) {
		struct range *range = &threads->ranges[(number + i) % threads->count];
		size_t task;

		while ((task = atomic_fetch_add(&range->next, 1)) < range->end)
			threads->task(threads->arg, task, number);
	}
}

/* Wait until the phase is another than seen; returns it. */
static unsigned wait_for_phase(struct cpu_threads *threads, unsigned seen)
{
	unsigned phase;

	for (int i = 0; i < SPINS_BEFORE_SLEEP; i++) {
		if ((phase = atomic_load(&threads->phase)) != seen)
			return phase;
		pause_cpu();
	}
	atomic_fetch_add(&threads->sleepers, 1);
	while ((phase = atomic_load(&threads->phase)) == seen)
		futex(&threads->phase, FUTEX_WAIT, seen);
	atomic_fetch_sub(&threads->sleepers, 1);
	return phase;
}

static void *help(void *arg)
{
	const struct helper *helper = arg;
	struct cpu_threads *threads = helper->threads;
	unsigned phase = 0;

	denormals_flush();
	while (!atomic_load(&threads->stop)) {
		phase = wait_for_phase(threads, phase);
		if (phase % 2 == 0)
			continue;
		atomic_fetch_add(&threads->inside, 1);
		if (atomic_load(&threads->phase) == phase)
			take_tasks(threads, helper->number);
		if (atomic_fetch_sub(&threads->inside, 1) == 1 && atomic_load(&threads->awaited))
			futex(&threads->inside, FUTEX_WAKE, 1);
	}
	return NULL;
}

/* Wait until no other thread is inside.  One that lost its CPU in a task may get this one's: so sleep, not yield. */
static void wait_for_others(struct cpu_threads *threads)
{
	unsigned inside;

	for (int i = 0; i < SPINS_BEFORE_SLEEP; i++) {
		if (atomic_load(&threads->inside) == 0)
			return;
		pause_cpu();
	}
	atomic_store(&threads->awaited, true);
	while ((inside = atomic_load(&threads->inside)) > 0)
		futex(&threads->inside, FUTEX_WAIT, inside);
	atomic_store(&threads->awaited, false);
}

static void set_phase(struct cpu_threads *threads, unsigned phase)
{
	atomic_store(&threads->phase, phase);
	if (atomic_load(&threads->sleepers) > 0)
		futex(&threads->phase, FUTEX_WAKE, INT32_MAX);
}

void cpu_threads_run(struct cpu_threads *threads, cpu_task *task, void *arg, size_t n)
{
	unsigned before = denormals_flush();
	unsigned phase = atomic_load(&threads->phase);

	threads->task = task;
	threads->arg = arg;
	for (size_t i = 0; i < threads->count; i++) {
		atomic_store_explicit(&threads->ranges[i].next, n * i / threads->count, memory_order_relaxed);
		threads->ranges[i].end = n * (i + 1) / threads->count;
	}
	if (n > 1 && threads->count > 1)
		set_phase(threads, phase + 1);
	take_tasks(threads, 0);
	if (n > 1 && threads->count > 1)
		atomic_store(&threads->phase, phase + 2);
	wait_for_others(threads);
	denormals_restore(before);
}

int cpu_threads_new(size_t count, struct cpu_threads **ret_threads, struct error *err)
{
	struct cpu_threads *threads = aligned_alloc(64, sizeof *threads);
	sigset_t all, before;
	int failed = 0;

	if (!threads)
		return error_memory(err, "threads");
	memset(threads, 0, sizeof *threads);
	threads->count = count ? count : cpu_count();
	threads->helpers = calloc(threads->count, sizeof *threads->helpers);
	threads->ranges = aligned_alloc(64, threads->count * sizeof *threads->ranges);
	if (!threads->helpers || !threads->ranges) {
		cpu_threads_free(threads);
		return error_memory(err, "threads");
	}
	sigfillset(&all); /* signals are for the program's own threads */
	pthread_sigmask(SIG_SETMASK, &all, &before);
	while (!failed && threads->started < threads->count - 1) {
		struct helper *helper = &threads->helpers[threads->started];

		helper->threads = threads;
		helper->number = threads->started + 1;
		failed = pthread_create(&helper->thread, NULL, help, helper);
		threads->started += !failed;
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (failed) {
		const size_t started = threads->started;

		cpu_threads_free(threads);
		return error_set(err, ERR_SYSTEM, "cannot start thread %zu: %s", started + 1, strerror(failed));
	}
	*ret_threads = threads;
	return 0;
}

void cpu_threads_free(struct cpu_threads *threads)
{
	if (!threads)
		return;
	atomic_store(&threads->stop, true);
	set_phase(threads, atomic_load(&threads->phase) + 2);
	for (size_t i = 0; i < threads->started; i++)
		pthread_join(threads->helpers[i].thread, NULL);
	free(threads->helpers);
	free(threads->ranges);
	free(threads);
}

size_t cpu_threads_count(const struct cpu_threads *threads)
{
	return threads->count;
}
