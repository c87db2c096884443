/* The thread pool of the cpu back end: every task runs once, threads sleep when idle, and CPUs are counted. */
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/cpu_count.h"
#include "model/cpu_threads.h"
#include "tests/suite.h"

#define MOST_TASKS 100
#define MOST_THREADS 5
#define PHASES 1000

struct board {
	atomic_uint runs[MOST_TASKS];    /* of each task */
	atomic_uint busy[MOST_THREADS];  /* tasks under way with this thread number */
	size_t count;
};

static void note(void *arg, size_t task, size_t thread)
{
	struct board *board = arg;

	ck_assert_uint_lt(thread, board->count);
	ck_assert_uint_eq(atomic_fetch_add(&board->busy[thread], 1), 0);
	atomic_fetch_add(&board->runs[task], 1);
	atomic_fetch_sub(&board->busy[thread], 1);
}

/* Phases of all sizes, some after a pause that is long enough to fall asleep in. */
START_TEST(every_task_runs_once)
{
	struct board board = { .count = (size_t)_i };
	struct cpu_threads *threads;
	unsigned seed = 1;

	ck_assert_int_eq(cpu_threads_new(board.count, &threads, NULL), 0);
	ck_assert_uint_eq(cpu_threads_count(threads), board.count);
	for (int phase = 0; phase < PHASES; phase++) {
		const size_t n = (size_t)rand_r(&seed) % (MOST_TASKS + 1);

		if (phase % 100 == 0)
			usleep(2000);
		cpu_threads_run(threads, note, &board, n);
		for (size_t task = 0; task < MOST_TASKS; task++)
			if (atomic_exchange(&board.runs[task], 0) != (task < n))
				ck_abort_msg("task %zu of %zu", task, n);
	}
	cpu_threads_free(threads);
}
END_TEST

static double cpu_seconds(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
	       1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

START_TEST(idle_threads_use_no_cpu)
{
	struct board board = { .count = 4 };
	struct cpu_threads *threads;
	double before;

	ck_assert_int_eq(cpu_threads_new(board.count, &threads, NULL), 0);
	cpu_threads_run(threads, note, &board, MOST_TASKS);
	before = cpu_seconds();
	usleep(500000);
	ck_assert_double_lt(cpu_seconds() - before, 0.1);
	cpu_threads_free(threads);
}
END_TEST

START_TEST(affinity_limits_threads)
{
	struct cpu_threads *threads;
	cpu_set_t all, one;
	size_t cpu = 0;

	ck_assert_int_eq(sched_getaffinity(0, sizeof all, &all), 0);
	ck_assert_uint_ge(cpu_count(), 1);
	ck_assert_uint_le(cpu_count(), (size_t)CPU_COUNT(&all));
	while (!CPU_ISSET(cpu, &all))
		cpu++;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	ck_assert_int_eq(sched_setaffinity(0, sizeof one, &one), 0);
	ck_assert_uint_eq(cpu_count(), 1);
	ck_assert_int_eq(cpu_threads_new(0, &threads, NULL), 0);
	ck_assert_uint_eq(cpu_threads_count(threads), 1);
	cpu_threads_free(threads);
	cpu_threads_free(NULL);
}
END_TEST

static void write_file(const char *path, const char *text)
{
	FILE *file = fopen(path, "w");

	ck_assert_ptr_nonnull(file);
	fputs(text, file);
	fclose(file);
}

/* A hierarchy a/b in a folder of its own, with these quotas (NULL: no file). */
static size_t count_quota(const char *membership, const char *at_root, const char *at_a, const char *at_b)
{
	char folder[] = "/tmp/check_cpu_XXXXXX";
	const char *const texts[] = { membership, at_root, at_a, at_b };
	const char *const names[] = { "membership", "cpu.max", "a/cpu.max", "a/b/cpu.max" };
	size_t counted;

	ck_assert_ptr_nonnull(mkdtemp(folder));
	ck_assert_int_eq(chdir(folder), 0);
	mkdir("a", 0700);
	mkdir("a/b", 0700);
	for (int i = 0; i < 4; i++)
		if (texts[i])
			write_file(names[i], texts[i]);
	counted = cpu_count_quota("membership", folder);
	for (int i = 0; i < 4; i++)
		remove(names[i]);
	rmdir("a/b");
	rmdir("a");
	rmdir(folder);
	return counted;
}

START_TEST(quota_limits_threads)
{
	ck_assert_uint_eq(count_quota("0::/a/b\n", NULL, "max 100000\n", "300000 100000\n"), 3);
	ck_assert_uint_eq(count_quota("0::/a/b\n", NULL, "150000 100000\n", "max 100000\n"), 2);
	ck_assert_uint_eq(count_quota("0::/a/b\n", "400000 100000\n", "1000 100000\n", NULL), 1);
	ck_assert_uint_eq(count_quota("3:cpu:/x\n0::/a\n", "400000 100000\n", NULL, "1000 100000\n"), 4);
	ck_assert_uint_eq(count_quota("0::/\n", "250000 50000\n", NULL, NULL), 5);
	ck_assert_uint_eq(count_quota("0::/a/b\n", NULL, NULL, NULL), SIZE_MAX);
	ck_assert_uint_eq(count_quota("3:cpu:/a\n", "100000 100000\n", NULL, NULL), SIZE_MAX);
	ck_assert_uint_eq(cpu_count_quota("/nowhere", "/"), SIZE_MAX);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("cpu_threads");
	TCase *pool = tcase_create("pool");

	tcase_set_timeout(pool, 120);
	tcase_add_loop_test(pool, every_task_runs_once, 1, MOST_THREADS + 1);
	tcase_add_test(pool, idle_threads_use_no_cpu);
	tcase_add_test(pool, affinity_limits_threads);
	tcase_add_test(pool, quota_limits_threads);
	suite_add_tcase(suite, pool);
	return suite_run(suite);
}
